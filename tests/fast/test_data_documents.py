"""Documents become rows: one a paragraph, block or page, with its place and the heading that it stands under."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data import document
from luthier.data.profile import profile
from luthier.data.read import Fault, Row, rows
from luthier.data.source import open_source
from luthier.errors import DataError, MissingExtra

MARKDOWN = """\
# Returns #
Within *thirty* days
of the purchase.

## How

- print the label
- send it
```
# no heading

and no end of the block
```
#no heading either
"""
HTML = """<!DOCTYPE html><html><head><title>Help &amp; more</title><style>p {}</style>
<script>var text = "<p>no</p>";</script></head><body>
<nav><a href="/">Home</a></nav><h1>Returns</h1>
<p>Within <b>thirty</b>
days.<br>Of the purchase</p><form>no <input></form>
<table><tr><th>what</th><td>how</td></tr></table><pre>a
  b</pre>
the rest</body></html>"""


def word(path: Path, body: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", f'<w:document xmlns:w="urn:w"><w:body>{body}</w:body></w:document>')
    return path


def paragraph(text: str, style: str = "") -> str:
    shown = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{shown}<w:r><w:t>{text}</w:t></w:r></w:p>"


def pdf(path: Path, pages: list[str]) -> Path:
    """The least that is a PDF, with one line a page."""
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 10 10 Td ({text}) Tj ET"
        page = "<< /Type /Page /Parent 2 0 R /Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 99 99]"
        objects += [
            f"{page} /Contents {5 + 2 * index} 0 R >>",
            f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        ]
    text, places = "%PDF-1.4\n", []
    for number, one in enumerate(objects, start=1):
        places.append(len(text))
        text += f"{number} 0 obj\n{one}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    text += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    path.write_text(f"{text}startxref\n{text.index('xref')}\n%%EOF\n")
    return path


def found(path: Path) -> list[tuple[int, object, object]]:
    return [(item.line, item.values["heading"], item.values["text"]) for item in rows(path) if isinstance(item, Row)]


def test_paragraphs_of_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\nOne, two\nthree.\n\n\n# Four\r\n \nfive\0\nsix")
    assert found(tmp_path / "a.txt") == [(2, "", "One, two\nthree."), (6, "", "# Four")]
    assert list(rows(tmp_path / "a.txt"))[2] == Fault(8, "nul_character", "the row holds a NUL character")


def test_a_table_that_is_called_text_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\tb\n1\t2\n3\t4\n")
    assert open_source(tmp_path / "a.txt").format == "csv"
    (tmp_path / "b.txt").write_text("One, two.\n\nThree, four, five.\n\nSix.\n")
    assert open_source(tmp_path / "b.txt").format == "text"


def test_paragraphs_of_markdown(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(MARKDOWN)
    assert found(tmp_path / "a.md") == [
        (2, "Returns", "Within *thirty* days\nof the purchase."),
        (
            7,
            "How",
            "- print the label\n- send it\n```\n# no heading\n\nand no end of the block\n```\n#no heading either",
        ),
    ]


def test_blocks_of_html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_text(HTML)
    expected = [
        (4, "Returns", "Within thirty days.\nOf the purchase"),
        (6, "Returns", "what how"),
        (6, "Returns", "a\n  b"),
        (8, "Returns", "the rest"),
    ]
    assert found(tmp_path / "a.html")[1:] == expected[1:]
    assert found(tmp_path / "a.html")[0][1:] == expected[0][1:]
    for size in (1, 7, 50):
        monkeypatch.setattr("luthier.data.readers.html._CHUNK", size)
        texts = [text for _, _, text in found(tmp_path / "a.html")]
        assert texts == [text for _, _, text in expected]


def test_paragraphs_of_word(tmp_path: Path) -> None:
    table = f"<w:tbl><w:tr><w:tc>{paragraph('cell')}</w:tc></w:tr></w:tbl>"
    changed = (
        "<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t></w:r></w:p>"
    )
    body = paragraph("Returns", "Heading1") + paragraph("one") + "<w:p/>" + changed + table
    path = word(tmp_path / "a.docx", body)
    assert found(path) == [(2, "Returns", "one"), (4, "Returns", "a\tb"), (5, "Returns", "cell")]
    path.rename(tmp_path / "unnamed")
    assert open_source(tmp_path / "unnamed").format == "docx"


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("word/document.xml", b"<w:document", "cannot be read"),
        ("word/document.xml", b"<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", "document type"),
        ("word/document.xml", b" " * (1 << 27), "grows to"),
        ("word/other.xml", b"", "is missing"),
        ("word/document.xml", b"<document><body/></document>", "holds no text"),
    ],
)
def test_word_documents_that_cannot_be_used(tmp_path: Path, part: str, content: bytes, words: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(part, content)
    with pytest.raises(DataError, match=words):
        list(rows(tmp_path / "a.docx"))


def test_pages_of_a_pdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdf")
    path = pdf(tmp_path / "a.pdf", ["one page", "", "another"])
    assert found(path) == [(1, "", "one page"), (3, "", "another")]
    with pytest.raises(DataError, match="holds no text"):
        open_source(pdf(tmp_path / "scan.pdf", ["", ""]))
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    with pytest.raises(MissingExtra, match=r"'pypdf', which is not installed\n  -> pip install 'luthier\[documents\]'"):
        open_source(path)


@given(cut=st.integers(5, 1200), place=st.integers(5, 1200), byte=st.integers(0, 255))
def test_a_spoiled_pdf_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, byte: int
) -> None:
    pytest.importorskip("pypdf")
    path = pdf(tmp_path_factory.mktemp("pdf") / "a.pdf", ["one page", "another"])
    content = bytearray(path.read_bytes())
    content[min(place, len(content) - 1)] = byte
    path.write_bytes(content[:cut] if cut < len(content) - 200 else content)
    try:
        list(rows(path))
    except DataError as error:
        said = error
    else:
        return
    assert "a.pdf" in said.what


def test_documents_are_plain_text_whatever_their_headings_look_like(tmp_path: Path) -> None:
    parts = [f"# {'AB'[n % 2]}\n\nparagraph number {n} of this text\n" for n in range(60)]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("\n".join(parts))
    (tmp_path / "docs" / "b.txt").write_text("\n\n".join(f"another text {n}, with a comma" for n in range(20)))
    (tmp_path / "docs" / "README.md").write_text("about it")
    for path in (tmp_path / "docs" / "a.md", tmp_path / "docs"):
        seen = profile(path)
        assert (seen.shape, seen.task, seen.input, seen.label) == ("plain_text", "domain", "{text}", "")
    assert profile(tmp_path / "docs").num_rows == 80


def test_a_text_without_blank_lines_is_cut_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "MOST_CHARS", 100)
    monkeypatch.setattr("luthier.data.readers.html.MOST_CHARS", 100)
    lines = [f"line {n} of many" for n in range(50)]
    for name in ("a.txt", "a.html"):
        (tmp_path / name).write_text("\n".join(lines))
        monkeypatch.setattr("luthier.data.readers.html._CHUNK", 20)
        texts = [str(text) for _, _, text in found(tmp_path / name)]
        assert all(len(text) < 150 for text in texts)
        assert "".join("".join(texts).split()) == "".join("".join(lines).split())
