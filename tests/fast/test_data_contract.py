"""One way to ask: ids equal transformers' own, answers are supervised exactly, contents never become control tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from data_kit import CHATML, renderer, resolved, tokenizer_folder
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.contract import Renderer, make_contract, with_labels
from luthier.data.masks import Supervision, mask
from luthier.data.template import render
from luthier.errors import DataError, ModelError, RecipeError, RunError
from luthier.records import Message
from luthier.spec.template import fields

os.environ["HF_HUB_OFFLINE"] = "1"

CONTENT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(str.strip).filter(bool)
TURNS = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3)

# Other families, shortened: trimmed contents and headers (Llama 3), brackets and blanks (Llama 2).
LLAMA3 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system turns') }}{% endif %}{% endfor %}"
)
FORGETFUL = (  # earlier answers are dropped, as templates of thinking models do with thoughts
    "{% for message in messages %}{% if message['role'] == 'user' or loop.last %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return renderer(tmp_path_factory.mktemp("asker"), labels=("order", "refund"))


@pytest.mark.parametrize("template", [CHATML, LLAMA3], ids=["chatml", "llama3"])
def test_ids_equal_those_of_transformers(tmp_path: Path, template: str) -> None:
    from transformers import AutoTokenizer

    ours = renderer(tmp_path, template=template)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    turns = [
        {"role": "system", "content": "Answer shortly."}, {"role": "user", "content": "Où est-il?\n\n  x = 1"},
        {"role": "assistant", "content": "Là-bas 🙂"}, {"role": "user", "content": "{{ messages }}"},
        {"role": "assistant", "content": "No."},
    ]  # fmt: skip
    messages = [Message.model_validate(turn) for turn in turns]

    def reference(turns: list[dict[str, str]], add_generation_prompt: bool) -> list[int]:
        return list(theirs.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, return_dict=False))

    assert ours.prompt_ids(messages[:2]) == reference(turns[:2], True)
    assert ours.prompt_ids(messages[:4]) == reference(turns[:4], True)
    ids, whole = mask(ours, messages, Supervision()).ids, reference(turns, False)
    # A row ends where generation stops; what the template still writes there opens the next prompt, if there is one.
    assert ids == whole[: len(ids)]
    assert ours._tokenizer.decode(whole[len(ids) :]) == ("\n" if template == CHATML else "")
    assert ids[-1] in ours.contract.stop_ids


@given(turns=TURNS)
def test_supervised_is_exactly_each_answer_and_its_end_of_turn(asker: Renderer, turns: list[tuple[str, str]]) -> None:
    messages = [
        Message(role=role, content=text)
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    ids, supervised, _, learned = mask(asker, messages, Supervision())
    assert learned == {"system": 0, "user": 0, "assistant": sum(supervised)}
    whole = render(
        asker.contract.chat_template,
        [(message.role, asker.defuse(message.content)) for message in messages],
        tokens={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        add_generation_prompt=False,
    )
    newline = asker.encode("\n")
    assert ids + newline == asker.encode(whole)  # the template's last newline comes after the token that stops
    expected: list[int] = []
    for _, answer in turns:
        expected += asker.answer_ids(answer)
        assert asker.answer_ids(answer)[-1:] == list(asker.contract.end_of_turn_ids) == list(asker.contract.stop_ids)
    assert [number for number, learned in zip(ids, supervised, strict=True) if learned] == expected
    last = len(asker.answer_ids(turns[-1][1]))
    assert ids[: len(ids) - last] == asker.prompt_ids(messages[:-1])
    assert all(supervised[-last:])
    stops = [place for place, number in enumerate(ids[:-1]) if number == 2 and supervised[place]]
    assert len(stops) == len(turns) - 1
    for place in stops:  # between two turns the newline is there, and belongs, unsupervised, to the prompt that follows
        assert ids[place + 1 : place + 2] == newline
        assert not supervised[place + 1]


CONTROL = st.sampled_from(["<|im_end|>", "<|im_start|>system\n", "<|endoftext|>"])


@given(text=st.lists(st.one_of(CONTENT, CONTROL)).map("".join))
def test_no_content_becomes_a_control_token(asker: Renderer, text: str) -> None:
    plain = asker.prompt_ids(asker.messages("x"))
    control = [number for number in asker.prompt_ids(asker.messages(text)) if number in (0, 1, 2)]
    assert control == [number for number in plain if number in (0, 1, 2)]
    assert asker.answer_ids(text)[-1] == 2
    assert not {0, 1, 2} & set(asker.answer_ids(text)[:-1])


def test_the_contract_of_a_closed_task(asker: Renderer) -> None:
    contract = asker.contract
    assert contract.labels == ("order", "refund")
    assert contract.end_of_turn == "<|im_end|>"
    assert contract.end_of_turn_ids == (2,)
    assert contract.stop_ids == (2,)
    assert contract.max_new_tokens == max(len(asker.answer_ids(label)) for label in contract.labels)
    prompt = asker.prompt_text(asker.messages("hi"))
    assert prompt == (
        "<|im_start|>system\nAnswer with the intent of the message.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert asker.decode(asker.answer_ids("order")) == "order"


def test_a_row_and_a_request_are_cleaned_alike(tmp_path: Path) -> None:
    ours = renderer(tmp_path, input="{title}: {body}", privacy={"action": "redact", "secrets": "redact"})
    text = ours.user_text({"title": "Caf&eacute;", "body": "call  +44 20 7946 0123<br>{title}", "other": 1})
    assert text == "Café: call [PHONE]\n{title}"
    assert ours.clean_text("Caf&eacute;: call  +44 20 7946 0123<br>{title}") == text == ours.clean_text(text)
    with pytest.raises(DataError, match=r"'body', which is not there\n  -> did you mean 'Body'\? there are: title, B"):
        ours.user_text({"title": "", "Body": ""})


def test_secrets_are_redacted_even_where_personal_data_is_only_reported(tmp_path: Path) -> None:
    text = renderer(tmp_path).clean_text("ana@example.org AKIA" + "IOSFODNN7EXAMPLE")
    assert text == "ana@example.org [SECRET]"


def test_cells_of_any_type_are_text(tmp_path: Path) -> None:
    ours = renderer(tmp_path, task="generation", input="{{{a}}} {b} {c} {d} {e}")
    assert ours.user_text({"a": True, "b": 1.5, "c": None, "d": ["é"], "e": {"k": 1}}) == '{true} 1.5  ["é"] {"k": 1}'


def test_what_stands_before_an_answer_is_part_of_it(tmp_path: Path) -> None:
    ours = renderer(tmp_path, template=LLAMA2, task="generation", system="")
    assert ours.answer_prefix == " "
    messages = [Message(role="user", content="a"), Message(role="assistant", content="b")]
    ids, supervised, _, _ = mask(ours, [*messages, *messages], Supervision())
    assert ours._tokenizer.decode(ids, skip_special_tokens=False) == "[INST] a [/INST] b <|im_end|>" * 2
    assert sum(supervised) == 2 * len(ours.answer_ids("b"))
    assert ours.contract.stop_ids == (2,)
    with pytest.raises(ModelError, match="cannot render this conversation: no system turns"):
        ours.prompt_text([Message(role="system", content="s"), *messages])


def test_conversations_that_the_template_retells_are_refused(tmp_path: Path) -> None:
    ours = renderer(tmp_path, template=FORGETFUL, task="generation", system="")
    turn = [Message(role="user", content="a"), Message(role="assistant", content="b")]
    assert mask(ours, turn, Supervision())
    with pytest.raises(DataError, match=r"renders turn 2 differently once .*\n  -> .*mask_history: true"):
        mask(ours, [*turn, *turn], Supervision())
    last = mask(ours, [*turn, *turn], Supervision(mask_history=True))
    assert last.ids == ours.prompt_ids([*turn, *turn[:1]]) + ours.answer_ids("b")
    assert sum(last.supervised) == len(ours.answer_ids("b"))
    with pytest.raises(DataError, match="the last turn is not an answer"):
        mask(ours, turn[:1], Supervision())


def test_base_models_get_the_plain_template(tmp_path: Path) -> None:
    ours = renderer(tmp_path, template=None, system="Translate.")
    assert ours.prompt_text(ours.messages("hello")) == "Translate.\n\nhello\n"
    assert ours.contract.end_of_turn == "<|im_end|>"
    assert ours.contract.bos_token == ""  # the tokenizer does not add one by itself


def test_templates_in_the_tokenizer_config(tmp_path: Path) -> None:
    listed = [{"name": "tools", "template": "no"}, {"name": "default", "template": CHATML}]
    for value in (CHATML, listed):
        bos = {"content": "<|im_start|>"}
        folder = tokenizer_folder(tmp_path / "t", template=None, chat_template=value, bos_token=bos)
        contract = make_contract(resolved(tmp_path), tokenizer_folder=folder, labels=())
        assert (contract.chat_template, contract.bos_token) == (CHATML, "<|im_start|>")


GENERATION = "{% generation %}x{% endgeneration %}{{ {'é': '<'} | tojson }}{{ eos_token is defined }}"


def test_the_sandbox_renders_as_transformers_does() -> None:
    assert render(GENERATION, [], tokens={"eos_token": ""}, add_generation_prompt=False) == 'x{"é": "<"}False'
    guarded = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}"
    assert render(guarded, [], tokens={}, add_generation_prompt=False) == "2024"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ strftime_now('%Y') }}", "depends on the clock"),
        ("{% for %}", "cannot render this conversation"),
        ("{{ messages[9].content.x }}", "cannot render this conversation"),
        ("{{ messages.__class__.__mro__ }}", "cannot render this conversation"),
        ("{% if add_generation_prompt %}A{% else %}B{% endif %}", "does not render an answer after its own"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        renderer(tmp_path, template=template)
    assert error.value.way_out


def test_tokenizers_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    recipe = resolved(tmp_path)
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        make_contract(recipe, tokenizer_folder=tmp_path, labels=())
    folder = tokenizer_folder(tmp_path / "t", template=None, eos_token=None)
    with pytest.raises(ModelError, match="nothing ends an answer"):
        make_contract(recipe, tokenizer_folder=folder, labels=())
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="is not a JSON object"):
        make_contract(recipe, tokenizer_folder=folder, labels=())
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        make_contract(recipe, tokenizer_folder=folder, labels=())
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is not a tokenizer"):
        make_contract(recipe, tokenizer_folder=folder, labels=())


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    renderer(tmp_path)
    with pytest.raises(RunError, match="is missing"):
        Renderer.open(tmp_path / "none.json", tmp_path / "tokenizer" / "tokenizer.json")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text())) + "\n")
    with pytest.raises(ModelError, match=r"is not the tokenizer of .*contract\.json: its hash is"):
        Renderer.open(tmp_path / "contract.json", path)


@pytest.mark.parametrize("template", ["{a", "a}", "{}", "no column", "{a} {", "{ }", '{"a}', '{"\\x"}', "{{a}}"])
def test_input_templates_that_cannot_be_read_are_refused(template: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.train\[0\]\.input"):
        fields(template)


def test_labels_that_are_written_alike_are_refused(tmp_path: Path) -> None:
    made = renderer(tmp_path)
    with pytest.raises(DataError, match="are written with the same tokens"):
        with_labels(made, ["<|im_end|>", made.defuse("<|im_end|>"), "other"])
