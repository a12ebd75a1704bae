"""Prompts that are put together from a frame are, token by token, those that are rendered and read as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_kit import renderer, tokenizer_folder
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from luthier.data.contract import Renderer
from luthier.data.frame import only_places_contents, reads_pieces_alone
from luthier.data.template import PLAIN_TEMPLATE

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        PLAIN_TEMPLATE,
        "{{ bos_token }}{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}{% endfor %}",
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles') }}{% endif %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}",
        "{{ messages[-1]['content'] }}",
    ],
)
def test_templates_that_only_place_contents(source: str) -> None:
    assert only_places_contents(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}",
        "{% for m in messages %}{% set content = m['content'] %}{{ content.upper() }}{% endfor %}",
        "{% for m in messages %}{% if 'x' in m['content'] %}!{% endif %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] if m['content'] else '-' }}{% endfor %}",
        "{% for m in messages %}{{ m['content'][:5] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'].strip() }}{% endfor %}",
        "{% for m in messages %}{{ m }}{% endfor %}",
        "{% for m in messages %}{% for key in m %}{{ m[key] }}{% endfor %}{% endfor %}",
        "{{ messages | tojson }}",
        "{{ messages | length }}",
        "{% filter upper %}{{ messages[0]['content'] }}{% endfilter %}",
        "{% set x = messages %}{{ x[0]['content'] | upper }}",
        "{% macro say(m) %}{{ m['content'] | upper }}{% endmacro %}{{ say(messages[0]) }}",
        "{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ 'a' * m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] == 'x' }}{% endfor %}",
        "{% for m in messages %}{{ '%s' % m['content'] }}{% endfor %}",
    ],
)
def test_templates_that_look_at_contents(source: str) -> None:
    assert not only_places_contents(source)


TRIMMED = CHATML.replace("message['content']", "(message['content'] | trim)")
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(st.sampled_from(["<|im_start|>", "<|im_", "end|>", "<", "|", "user", "\n", " ", "card", "é", "1"])).map(
        "".join
    ),
)


@pytest.fixture(scope="module", params=[CHATML, TRIMMED, PLAIN_TEMPLATE], ids=["chatml", "trimmed", "plain"])
def asker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return renderer(tmp_path_factory.mktemp("asker"), template=request.param, labels=("order", "refund"))


@given(texts=st.lists(TEXTS, max_size=5))
def test_prompts_from_a_frame_are_those_of_one_at_a_time(asker: Renderer, texts: list[str]) -> None:
    assert asker.all_prompt_ids(texts) == [asker.prompt_ids(asker.messages(text)) for text in texts]


def test_a_frame_is_used_where_it_can_be(tmp_path: Path) -> None:
    for number, (template, framed) in enumerate([(CHATML, True), (TRIMMED, False)]):
        asker = renderer(tmp_path / str(number), template=template)
        assert (asker._frame is not None) == framed


def test_tokenizers_that_look_beyond_a_piece(tmp_path: Path) -> None:
    path = tokenizer_folder(tmp_path) / "tokenizer.json"
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert reads_pieces_alone(Tokenizer.from_str(json.dumps(plain)))
    for token in (
        AddedToken("<|x|>", special=True, lstrip=True, normalized=False),
        AddedToken("<|x|>", special=True, normalized=True),
        AddedToken("a<b", special=False, normalized=False),  # could swallow the '<' of a control token
        AddedToken("<|im_end|>!", special=False, normalized=False),  # is longer than the control token before it
    ):
        tokenizer = Tokenizer.from_str(json.dumps(plain))
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        assert not reads_pieces_alone(tokenizer), token
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    assert not reads_pieces_alone(tokenizer)
