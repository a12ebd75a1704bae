"""Every column name can be written in a template and is read back from it; nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.spec.template import field, fields, literals, render

PIECE = st.text(st.sampled_from('{}"\\ !:.[]ab\n\u00a0é') | st.characters(exclude_categories=["Cs"]), max_size=8)


@given(names=st.lists(PIECE, min_size=1, max_size=4), texts=st.lists(PIECE, min_size=4, max_size=4))
def test_what_is_written_is_read(names: list[str], texts: list[str]) -> None:
    written = "".join(
        text.replace("{", "{{").replace("}", "}}") + field(name) for text, name in zip(texts, names, strict=False)
    )
    assert fields(written) == tuple(dict.fromkeys(names))
    assert literals(written) == "".join(texts[: len(names)])
    assert render(written, lambda name: f"<{name}>") == "".join(
        f"{text}<{name}>" for text, name in zip(texts, names, strict=False)
    )


@pytest.mark.parametrize(
    ("template", "names", "said"),
    [
        ("{a}", ("a",), ""),
        ("{ a }: {b c} {a}", ("a", "b c"), ":  "),
        ("{{{a}}}", ("a",), "{}"),
        ("{a:b} {c!r} {d[0]} {e.f}", ("a:b", "c!r", "d[0]", "e.f"), "   "),
        ('{"{x!r}"}', ("{x!r}",), ""),
        ('say "{a}"', ("a",), 'say ""'),
    ],
)
def test_templates_as_people_write_them(template: str, names: tuple[str, ...], said: str) -> None:
    assert fields(template) == names
    assert literals(template) == said


def test_a_cell_is_never_read_as_a_template() -> None:
    assert render("{a} {b}", {"a": "{b}", "b": "{{"}.__getitem__) == "{b} {{"
