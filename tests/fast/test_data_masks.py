"""What is learned of a conversation: the same spans as transformers' own mask, or a refusal; never a guess."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from data_kit import CHATML, renderer, resolved, tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.chat import parse_chat
from luthier.data.contract import Renderer
from luthier.data.masks import Supervision, mask
from luthier.data.prepare import prepare
from luthier.data.shards import Shard
from luthier.errors import DataError, RecipeError
from luthier.records import Message, Role
from luthier.spec.load import load_recipe

os.environ["HF_HUB_OFFLINE"] = "1"

# As published, but for Gemma's marks, which are those of the small tokenizer here.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>model\n'}}{% endif %}"
)
THINKING = (  # Qwen 3, shortened: an empty thought is written before the last answer, and before no other
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FOLDED = (  # the system's words stand in the user's turn, as in Llama 2 and Gemma 3
    "{% for message in messages %}{% if message['role'] == 'system' %}{% else %}{{ '<|im_start|>' + message['role'] }}"
    "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}{{ '\nRules:\n' + messages[0]['content'] }}"
    "{% endif %}{{ '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTENT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(str.strip).filter(bool)
WEIGHT = st.sampled_from([1, 1, 0])
ROLES: tuple[Role, ...] = get_args(Role)


@st.composite
def conversations(draw: st.DrawFn, *, system: bool = True) -> list[Message]:
    turns = [Message(role="system", content=draw(CONTENT))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Message(role="user", content=draw(CONTENT), weight=draw(WEIGHT)))
        turns.append(Message(role="assistant", content=draw(CONTENT), weight=draw(WEIGHT)))
    return [*turns[:-1], turns[-1].model_copy(update={"weight": 1})]


def marked(supervision: Supervision) -> str:
    """ChatML whose `generation` block holds what is learned; `learn` comes with the turn."""
    head = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    body = "{{ message['content'] + '<|im_end|>' }}"
    learned = f"{{% generation %}}{body}{{% endgeneration %}}"
    return (
        f"{{% for message in messages %}}{head}{{% if message['learn'] %}}{learned}{{% else %}}{body}{{% endif %}}"
        "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return renderer(tmp_path_factory.mktemp("ours"), task="generation", system="")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tokenizer_folder(tmp_path_factory.mktemp("theirs"), template=None)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


SUPERVISION = st.builds(
    Supervision,
    st.sampled_from([("assistant",), ("user", "assistant"), ("system", "user", "assistant"), ("system", "assistant")]),
    st.booleans(),
)


@settings(deadline=None)
@given(turns=conversations(), supervision=SUPERVISION)
def test_the_mask_is_that_of_transformers_with_generation_blocks(
    ours: Renderer, theirs: Any, turns: list[Message], supervision: Supervision
) -> None:
    found = mask(ours, turns, supervision)
    told = [
        {"role": turn.role, "content": turn.content, "learn": turn is turns[-1] or supervision.learns(turn)}
        for turn in turns
    ]
    expected = theirs.apply_chat_template(
        told, chat_template=marked(supervision), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    length = len(found.ids)  # the template's last newline comes after the token that stops
    assert found.ids == list(expected["input_ids"])[:length]
    assert found.supervised == [bool(one) for one in expected["assistant_masks"]][:length]
    assert sum(found.learned.values()) == sum(found.supervised)
    assert {role for role, count in found.learned.items() if count} <= set(supervision.roles)
    assert found.ids[: found.prompt_tokens] == ours.prompt_ids(turns[:-1])


@pytest.mark.parametrize("template", [CHATML, SMOLLM2, GEMMA, FOLDED], ids=["chatml", "smollm2", "gemma", "folded"])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_what_is_learned_reads_as_it_was_said_whatever_the_template(
    template: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    made = renderer(tmp_path_factory.mktemp("t"), template=template, task="generation", system="")
    turns = data.draw(conversations(system=template != GEMMA))
    supervision = data.draw(SUPERVISION)
    found = mask(made, turns, supervision)
    said = "".join(
        made.defuse(turn.content) + ("" if template == FOLDED and turn.role == "system" else "<|im_end|>")
        for turn in turns
        if turn is turns[-1] or supervision.learns(turn)
    )
    learned = [token for token, on in zip(found.ids, found.supervised, strict=True) if on]
    assert made.raw_text(learned) == said
    whole = made.raw_text(found.ids)
    assert whole == made.whole_text(turns)


def turns_of(*texts: str) -> list[Message]:
    return [Message(role="assistant" if n % 2 else "user", content=text) for n, text in enumerate(texts)]


def test_a_template_that_thinks_is_learned_at_the_last_answer_only(tmp_path: Path) -> None:
    made = renderer(tmp_path, template=THINKING, task="generation", system="")
    turns = turns_of("a", "b", "c", "d")
    with pytest.raises(DataError, match=r"renders turn 2 differently .*\n  -> learn the last answer only"):
        mask(made, turns, Supervision())
    for allowed in (mask(made, turns, Supervision(mask_history=True)), mask(made, turns[2:], Supervision())):
        learned = [token for token, on in zip(allowed.ids, allowed.supervised, strict=True) if on]
        assert made.raw_text(learned) == "<think>\n\n</think>\n\nd<|im_end|>"
    unlearned = [turn.model_copy(update={"weight": 0}) for turn in turns[:2]] + turns[2:]
    assert mask(made, unlearned, Supervision()) == mask(made, turns, Supervision(mask_history=True))


def test_tokens_that_stand_across_the_end_of_a_turn_are_refused(tmp_path: Path) -> None:
    blank = FOLDED.replace("Rules:\n", "Rules: ")  # ' the' is one token: the template's blank, the system's word
    made = renderer(tmp_path, template=blank, task="generation", system="")
    turns = [Message(role="system", content="the order"), *turns_of("a", "b")]
    assert mask(made, turns, Supervision(("user", "assistant"))), "nothing of the system's turn need be told apart"
    with pytest.raises(DataError, match=r"joins the text of turn 1 with what stands around it\n  -> strip the texts"):
        mask(made, turns, Supervision(("system", "assistant")))


def test_a_turn_that_the_template_rewrites_cannot_be_learned(tmp_path: Path) -> None:
    upper = CHATML.replace("message['content']", "(message['content'] | upper if message['role'] == 'user' else 'b')")
    with pytest.raises(Exception, match="does not render an answer"):
        renderer(tmp_path / "no", template=upper, task="generation", system="")
    upper = upper.replace("'b'", "message['content']")
    made = renderer(tmp_path, template=upper, task="generation", system="")
    assert mask(made, turns_of("a", "b"), Supervision())
    with pytest.raises(DataError, match=r"does not write turn 1 as it stands.*\n  -> take 'user' out of"):
        mask(made, turns_of("a", "b"), Supervision(("user", "assistant")))


def test_offsets_decide_where_pieces_are_encoded_otherwise(tmp_path: Path) -> None:
    """A tokenizer that puts a blank before every text, as Llama 2's does: pieces are not the whole."""
    from tokenizers import pre_tokenizers

    made = renderer(tmp_path, task="generation", system="")
    made._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    made = Renderer(made.contract, made._tokenizer)
    turns = turns_of("who", "me", "and", "you")
    found = mask(made, turns, Supervision())
    assert found.ids[: found.prompt_tokens] == made.prompt_ids(turns[:-1])
    learned = [token for token, on in zip(found.ids, found.supervised, strict=True) if on]
    assert made.raw_text(learned).replace(" ", "") == "me<|im_end|>you<|im_end|>"


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ((1, 0.5), "turn 2 has a weight that is neither 0 nor 1"),
        ((True, 1), "turn 1 has a weight that is neither 0 nor 1"),
        (("1", 1), "turn 1 has a weight that is neither 0 nor 1"),
        ((1, 0), "every answer has the weight 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: Sequence[Any], reason: str) -> None:
    cell = [{"role": r, "content": "x", "weight": w} for r, w in zip(("user", "assistant"), weights, strict=True)]
    assert parse_chat(cell) == reason


def test_a_row_ends_with_the_last_answer_that_is_learned() -> None:
    cell = [
        {"role": role, "content": text, **more}
        for role, text, more in [
            ("user", "a", {}), ("assistant", "b", {"weight": 0}), ("user", "c", {"weight": None}),
            ("assistant", "d", {"weight": 1.0}), ("user", "e", {}), ("assistant", "f", {"weight": 0}),
        ]
    ]  # fmt: skip
    turns = parse_chat(cell)
    assert not isinstance(turns, str)
    assert [(turn.content, turn.weight) for turn in turns] == [("a", 1), ("b", 0), ("c", 1), ("d", 1)]


def learned_texts(folder: Path, **entry: Any) -> list[str]:
    """What is learned of the first training row of a file of conversations, run by run."""
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be kind."}, {"role": "user", "content": f"hi {n}"},
                {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "the sum"},
                {"role": "assistant", "content": "two"}, {"role": "user", "content": "sure?"},
                {"role": "assistant", "content": "no"},
            ]
        }
        for n in range(20)
    ]  # fmt: skip
    for row in rows:
        row["messages"][4]["weight"] = 0
    folder.mkdir(exist_ok=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = resolved(folder, path="data.jsonl", task="generation", input="", label="", system="")
    changed = made.recipe.entry.model_copy(update=entry)
    data = made.recipe.data.model_copy(update={"train": (changed,)})
    made = made.model_copy(update={"recipe": made.recipe.model_copy(update={"data": data})})
    report = prepare(made, tokenizer_folder=tokenizer_folder(folder / "tokenizer"), out=folder / "out")
    assert report.rows_out == 20
    row = Shard(folder / "out" / "train.arrow")[0]
    reader = Renderer.open(folder / "out" / "contract.json", folder / "tokenizer" / "tokenizer.json")
    learned = [token for token, on in zip(row.input_ids, row.supervised, strict=True) if on]
    assert row.supervised_user + row.supervised_system <= len(learned)
    return reader.raw_text(learned).split("<|im_end|>")[:-1]


def test_the_recipe_says_whose_turns_are_learned(tmp_path: Path) -> None:
    assert learned_texts(tmp_path / "a") == ["yes?", "no"]
    assert learned_texts(tmp_path / "b", mask_history=True) == ["no"]
    user = learned_texts(tmp_path / "c", roles_to_train=("user", "assistant"))
    assert [user[0][:2], *user[1:]] == ["hi", "yes?", "the sum", "sure?", "no"]
    assert learned_texts(tmp_path / "d", roles_to_train=("system", "assistant"))[0] == "Be kind."


def test_roles_without_answers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = "name: r\nmodel: {name: m}\ndata: {train: [{path: d.csv, roles_to_train: %s}]}\n"
    path.write_text(text % "[user]")
    with pytest.raises(Exception, match=r"r\.yaml:3: data\.train\.0\.roles_to_train: must name 'assistant'"):
        load_recipe(path)
    path.write_text(text % "[assistant, user, user]")
    assert load_recipe(path).recipe.entry.roles_to_train == ("user", "assistant")


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ("train_on_inputs: true", r"here that is data\.train\[0\]\.roles_to_train: \[user, assistant\]"),
        ("train: {completion_only_loss: true}", "here that is the default: answers alone are learned"),
        ("mask_history: true", r"here that is data\.train\[0\]\.mask_history"),
        ("train: {class_weights: {a: 2}}", r"here that is train\.class_weight"),
    ],
)
def test_keys_of_other_tools_are_refused_with_their_name_here(tmp_path: Path, keys: str, hint: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"name: r\nmodel: {{name: m}}\ndata: {{train: [{{path: d.csv}}]}}\n{keys}\n")
    with pytest.raises(RecipeError, match=rf"r\.yaml:4: unknown key .*\n  -> {hint}"):
        load_recipe(path)


def test_a_template_that_refuses_every_row_is_told_as_such(tmp_path: Path) -> None:
    rows = [{"messages": [turn.model_dump() for turn in turns_of(f"a {n}", "b", "c", f"d {n}")]} for n in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = resolved(tmp_path, path="data.jsonl", task="generation", input="", label="", system="")
    folder = tokenizer_folder(tmp_path / "tokenizer", template=THINKING)
    with pytest.raises(DataError, match=r"^data\.jsonl:1 and all other rows, 20: .*turn 2 differently") as error:
        prepare(made, tokenizer_folder=folder, out=tmp_path / "out")
    assert error.value.way_out.startswith("learn the last answer only (data.train[0].mask_history: true)")
    rows[0]["messages"] = rows[0]["messages"][:2]
    rows += [{"messages": [turn.model_dump() for turn in turns_of(f"e {n}", f"f {n}")]} for n in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = prepare(made, tokenizer_folder=folder, out=tmp_path / "out")
    assert report.dropped == {"template": 19}
    assert "mask_history: true" in report.fates[0].detail
