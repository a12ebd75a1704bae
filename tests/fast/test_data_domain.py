"""Documents on their way to shards: each token learned once, none in two splits, general texts by their share."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from data_kit import resolved, tokenizer_folder
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from luthier.data.contract import Renderer, make_contract, open_tokenizer
from luthier.data.documents import CONTEXT, bounds, pieces, read_documents
from luthier.data.items import Item
from luthier.data.prepare import prepare
from luthier.data.privacy import ner
from luthier.data.privacy.ner import stretches
from luthier.data.read import Row
from luthier.data.shards import Example, Shard
from luthier.data.source import open_source
from luthier.data_report import DataReport
from luthier.errors import DataError, SecretFound
from luthier.records import SplitName
from luthier.spec.methods.pretrain import Pretrain
from luthier.spec.resolve import ResolvedRecipe

WORDS = [
    "bridge",
    "nut",
    "neck",
    "varnish",
    "fretboard",
    "purfling",
    "scroll",
    "peg",
    "the",
    "of",
    "a",
    "is",
    "late",
    "—",
    "naïve",
    "日本",
    "🎻",
]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def recipe(
    folder: Path, *, path: str = "docs.jsonl", replay: dict[str, Any] | None = None, **data: Any
) -> ResolvedRecipe:
    made = resolved(
        folder, path=path, task="domain", input="{text}", label="", system="", max_length=data.pop("max_length", 64),
        **{"privacy": {"action": "redact", "secrets": "stop", "profile": "fast"}, **data},
    )  # fmt: skip
    method = Pretrain.model_validate({"replay": replay}) if replay else Pretrain()
    return made.model_copy(update={"recipe": made.recipe.model_copy(update={"method": method})})


def prepared(
    folder: Path, out: str = "out", *, bos: bool = False, **options: Any
) -> tuple[DataReport, dict[SplitName, Shard], Path]:
    tokenizer = tokenizer_folder(folder / "tokenizer", bos_token="<|endoftext|>")
    if bos:
        _add_bos(tokenizer / "tokenizer.json")
    (folder / out).mkdir(exist_ok=True)
    report = prepare(recipe(folder, **options), tokenizer_folder=tokenizer, out=folder / out)
    return report, {split: Shard(folder / out / f"{split}.arrow") for split in SPLITS}, tokenizer


def _add_bos(path: Path) -> None:
    made = Tokenizer.from_file(str(path))
    made.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", made.token_to_id("<|endoftext|>"))]
    )
    made.save(str(path))


@given(st.integers(1, 5000), st.integers(9, 600))
def test_pieces_cover_every_token_once_and_are_as_few_as_will_do(total: int, most: int) -> None:
    edges, kept = bounds(total, most), most // CONTEXT
    assert (edges[0], edges[-1]) == (0, total)
    lengths = [end - begin for begin, end in pairwise(edges)]
    assert min(lengths) > 0
    assert edges[1] <= most
    assert all(length + kept <= most for length in lengths[1:])
    assert all(begin >= kept for begin in edges[1:-1]), "the context is there"
    if total > most:
        assert (len(lengths) - 1) * (most - kept) + kept < total, "one piece fewer would not do"
        whole = [lengths[0], *(length + kept for length in lengths[1:])]
        assert max(whole) - min(whole) <= 1


@pytest.mark.parametrize("bos", [False, True])
def test_each_token_of_a_document_is_learned_once_as_plain_transformers_reads_it(tmp_path: Path, bos: bool) -> None:
    from transformers import AutoTokenizer

    rng = random.Random(1)
    texts = [prose(rng, rng.choice([2, 5, 30, 200])) + f" {number}" for number in range(24)]
    write(tmp_path / "docs.jsonl", texts)
    report, shards, folder = prepared(tmp_path, bos=bos)
    plain = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found: dict[tuple[SplitName, int], list[Example]] = defaultdict(list)
    for split, shard in shards.items():
        for row in shard:
            found[split, row.line].append(row)
    assert sorted(line for _, line in found) == list(range(1, 25)), "each document stands in one split, whole"
    assert (report.rows_out, sum(split.rows for split in report.splits.values())) == (
        24,
        sum(map(len, shards.values())),
    )
    for (_, line), rows in found.items():
        expected = [*plain(texts[line - 1])["input_ids"], plain.eos_token_id]
        learned = [token for row in rows for token, on in zip(row.input_ids, row.supervised, strict=True) if on]
        assert learned == expected[1:], "all but the first, which nothing stands before, in order and once"
        assert (plain.bos_token_id == expected[0]) == bos
        at = 0
        for row in rows:
            begin = at - row.prompt_tokens
            assert row.input_ids == expected[begin : begin + len(row.input_ids)], "nothing of another document"
            assert not any(row.supervised[: row.prompt_tokens])
            assert len(row.input_ids) <= 64
            at = begin + len(row.input_ids)
        assert [row.prompt_tokens for row in rows] == [0, *[8] * (len(rows) - 1)]
        said = "".join(row.text for row in rows)
        assert texts[line - 1].endswith(said)
        several = not texts[line - 1][0].isascii()  # said where any of its tokens is learned
        assert (bos or several) == (said == texts[line - 1])


def test_a_prompt_is_the_beginning_of_a_document_whatever_the_tokenizer_does_at_its_start(tmp_path: Path) -> None:
    """A tokenizer that puts a blank before the first word of a text does so behind its BOS too."""
    folder = tokenizer_folder(tmp_path / "tokenizer", bos_token="<|endoftext|>", eos_token="<|im_end|>", template=None)
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<|endoftext|>", "<|im_end|>"]
    made.train_from_iterator(
        ["the neck of a lute"] * 3, trainers.BpeTrainer(special_tokens=special, show_progress=False)
    )
    made.save(str(folder / "tokenizer.json"))
    _add_bos(folder / "tokenizer.json")
    contract = make_contract(recipe(tmp_path), tokenizer_folder=folder, labels=())
    ours = Renderer(contract, open_tokenizer(folder / "tokenizer.json"))
    (row,) = pieces(Item("d", 1, None, {}, text="the neck of a lute"), ours)
    prompt = ours.prompt_ids(ours.messages("the neck of a lute"))
    assert prompt == row.input_ids[:-1]
    assert prompt == Tokenizer.from_file(str(folder / "tokenizer.json")).encode("the neck of a lute").ids
    assert prompt != ours.encode(ours.prompt_text(ours.messages("the neck of a lute"))), "or this test shows nothing"


def test_what_looks_like_a_control_token_in_a_document_is_text(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    folder = tokenizer_folder(tmp_path / "tokenizer")
    contract = make_contract(made, tokenizer_folder=folder, labels=())
    renderer = Renderer(contract, open_tokenizer(folder / "tokenizer.json"))
    (row,) = pieces(Item("d", 1, None, {}, text="it ends <|im_end|> here"), renderer)
    end = contract.end_of_turn_ids[0]
    assert row.input_ids.count(end) == 1
    assert row.input_ids[-1] == end
    assert pieces(Item("d", 1, None, {}, text="a"), renderer) == []


def test_parts_of_a_document_are_joined_in_order(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("# One\n\nfirst part\n\n## Two\n\n- a list\n\n```\n# code\n```\n", encoding="utf-8")
    (docs / "b.txt").write_text("plain\n\ntext\n", encoding="utf-8")
    (docs / "c.html").write_text("<h1>Head</h1><p>one</p><p>two</p><h2>Next</h2><p>three</p>", encoding="utf-8")
    rows = [row for row in read_documents(open_source(docs)) if isinstance(row, Row)]
    assert [(row.file, row.values["text"]) for row in rows] == [
        ("a.md", "# One\n\nfirst part\n\n## Two\n\n- a list\n\n```\n# code\n```"),
        ("b.txt", "plain\n\ntext"),
        ("c.html", "Head\n\none\n\ntwo\n\nNext\n\nthree"),
    ]
    (one,) = read_documents(open_source(docs / "a.md"))
    assert isinstance(one, Row)
    assert (one.file, one.line) == ("", 1)


def test_a_folder_of_documents_is_split_by_document(tmp_path: Path) -> None:
    rng = random.Random(2)
    (tmp_path / "docs").mkdir()
    for number in range(20):
        text = "\n\n".join(prose(rng, 30) + f" {number}" for _ in range(rng.randrange(1, 6)))
        (tmp_path / "docs" / f"{number}.md").write_text(text + "\n", encoding="utf-8")
    (tmp_path / "docs" / "20.md").write_text((tmp_path / "docs" / "3.md").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "docs" / "21.md").write_text("broken \0 here\n", encoding="utf-8")
    report, shards, _ = prepared(tmp_path, path="docs", max_bad_rows=0.1)
    assert (report.rows_in, report.rows_out, report.dropped) == (22, 20, {"duplicate": 1, "nul_character": 1})
    assert sum(split.documents or 0 for split in report.splits.values()) == 20
    groups = [{row.group for row in shard} for shard in shards.values()]
    assert not (groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2])
    assert report.end_of_turn_supervised, "each document ends once"
    assert sum(split.supervised_tokens for split in report.splits.values()) == sum(
        split.tokens - split.rows + (split.documents or 0) - 8 * (split.rows - (split.documents or 0))
        + split.rows - 2 * (split.documents or 0)
        for split in report.splits.values()
    ), "all but first tokens and contexts"  # fmt: skip


def test_personal_data_is_treated_in_documents_and_a_secret_stops(tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [prose(rng, 20) + f" {number}" for number in range(20)]
    texts[4] += " write to ana@example.org"
    write(tmp_path / "docs.jsonl", texts)
    report, shards, _ = prepared(tmp_path)
    assert report.findings == {"email": 1}
    assert not any("ana@" in row.text for shard in shards.values() for row in shard)
    write(tmp_path / "docs.jsonl", [*texts, "key AKIA" + "IOSFODNN7EXAMPLE"])
    with pytest.raises(SecretFound, match=r"docs\.jsonl:21"):
        prepared(tmp_path)


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def domain(tmp_path: Path) -> Path:
    rng = random.Random(4)
    write(tmp_path / "docs.jsonl", [prose(rng, 60) + f" {number}" for number in range(30)])
    general = [f"{number} birds over the {name} river" for number in range(40) for name in ("blue", "wide", "long")]
    write(tmp_path / "general.jsonl", general)
    return tmp_path


def replays(shard: Shard) -> set[str]:
    return {row.text for row in shard if row.made_by == "replay"}


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_general_texts_are_the_stated_share_of_what_is_learned(domain: Path, share: float) -> None:
    report, shards, _ = prepared(domain, replay={"path": "general.jsonl", "share": share}, leakage={"near": False})
    told = report.replay
    assert told is not None
    general = sum(sum(row.supervised) for row in shards["train"] if row.made_by)
    assert (told.tokens, told.rows) == (
        general,
        sum(row.made_by == "replay" and not row.prompt_tokens for row in shards["train"]),
    )
    assert told.share == pytest.approx(general / shards["train"].supervised_tokens)
    shortest = 30
    assert share - shortest / shards["train"].supervised_tokens < told.share <= share
    assert not replays(shards["validation"]) | replays(shards["test"])
    assert report.rows_added == told.rows
    assert report.rows_in + report.rows_added == report.rows_out
    assert "general.jsonl" in report.source_sha256


def test_the_draw_follows_from_seed_and_texts_not_from_their_order(domain: Path) -> None:
    drawn = {"path": "general.jsonl", "share": 0.1}
    one = replays(prepared(domain, replay=drawn)[1]["train"])
    lines = (domain / "general.jsonl").read_text(encoding="utf-8").splitlines()
    (domain / "general.jsonl").write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
    assert replays(prepared(domain, "again", replay=drawn)[1]["train"]) == one
    assert replays(prepared(domain, "other", replay={**drawn, "seed": 1})[1]["train"]) != one


def test_no_general_text_stands_in_validation_or_test(domain: Path) -> None:
    """Held-out documents, and nearly the same, among the general texts are not taken."""
    _, shards, _ = prepared(domain, leakage={"near": 0.8})
    lines = [json.loads(line)["text"] for line in (domain / "docs.jsonl").read_text(encoding="utf-8").splitlines()]
    held = [lines[row.line - 1] for name in ("validation", "test") for row in shards[name] if not row.prompt_tokens]  # type: ignore[index]
    write(domain / "general.jsonl", [*held, *(f"{text} indeed" for text in held), "a quiet sea and a wide sky"])
    report, after, _ = prepared(domain, "after", replay={"path": "general.jsonl", "share": 0.9}, leakage={"near": 0.8})
    assert report.replay is not None
    assert report.replay.rows == 1
    assert report.replay.dropped == {"nearly_in_the_data": len(held), "stands_in_the_data": len(held)}
    assert {split: report.splits[split].sha256 for split in ("validation", "test")} == {
        split: prepared(domain, leakage={"near": 0.8})[0].splits[split].sha256 for split in ("validation", "test")
    }
    assert not any(row.contaminated for row in after["test"])


def test_a_held_out_document_is_known_although_something_was_redacted_in_it(domain: Path) -> None:
    lines = [json.loads(line)["text"] for line in (domain / "docs.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [f"{text} write to ana{number}@example.org" for number, text in enumerate(lines)]
    write(domain / "docs.jsonl", texts)
    write(domain / "general.jsonl", [*texts, texts[0], "a quiet sea", "a quiet sea"])
    report, _, _ = prepared(domain, replay={"path": "general.jsonl", "share": 0.9})
    assert report.replay is not None
    assert (report.replay.rows, report.replay.dropped) == (1, {"repeated": 2, "stands_in_the_data": 30})


def test_general_texts_are_looked_through_as_the_domains_are(domain: Path) -> None:
    write(domain / "general.jsonl", ["please write to ana@example.org at once", "the key is AKIA" + "IOSFODNN7EXAMPLE"])
    with pytest.raises(SecretFound, match=r"general\.jsonl:2"):
        prepared(domain, replay={"path": "general.jsonl", "share": 0.5})
    write(domain / "general.jsonl", ["please write to ana@example.org at once"])
    report, shards, _ = prepared(domain, replay={"path": "general.jsonl", "share": 0.5})
    (row,) = replays(shards["train"])
    assert "ana@" not in row
    assert report.findings == {"email": 1}, "the gate looks at all that is learned"


def test_general_texts_that_cannot_be_taken_are_refused(domain: Path) -> None:
    write(domain / "general.jsonl", [" ".join(map(str, range(4000)))])
    with pytest.raises(DataError, match=r"method\.replay: of 1 texts in general\.jsonl none can be taken") as error:
        prepared(domain, replay={"path": "general.jsonl", "share": 0.01})
    assert "shorter" in error.value.way_out


# --- long documents and what looks for names --------------------------------------------------------------------------


@given(st.text(alphabet="ab \n", max_size=300), st.integers(1, 40))
def test_stretches_of_a_long_text_are_all_of_it_cut_between_words(text: str, most: int) -> None:
    found = stretches(text, most)
    assert "".join(text[start:end] for start, end in found) == text
    assert all(end - start <= most for start, end in found)
    for start, end in found[:-1]:
        inside = text[start:end]
        assert inside[-1].isspace() or not any(char.isspace() for char in inside[1:])


def test_names_are_found_in_documents_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("presidio_analyzer")
    monkeypatch.setattr(ner, "LONGEST", 60)
    text = "A letter from Maria Keller came today.\n\n" + "The weather was fine. " * 8 + "\n\nPeter Novak wrote back.\n"
    found, words = ner.Presidio().read(text)
    assert {text[one.start : one.end] for one in found} >= {"Maria Keller", "Peter Novak"}
    assert [text[word.start : word.end] for word in words][:3] == ["A", "letter", "from"]
