"""A tokenizer with new words: old ids stay, other texts are cut as before, any text comes back; and which words."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from data_kit import resolved, tokenizer_folder
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from luthier.data.prepare import prepare
from luthier.data.shards import Shard
from luthier.data.vocabulary import FILE, TOKENIZER, Words, in_pieces, plain, refuse_other_ids
from luthier.data_report import DataReport
from luthier.errors import DataError, ModelError
from luthier.records import RequestContract, SplitName
from luthier.spec.methods.pretrain import Pretrain
from luthier.spec.new_tokens import NewTokens
from luthier.vocabulary_records import Vocabulary

WORDS = ["Ġvarnish", "varnish", "Ġpurfling", "ĠnaÃ¯ve", "soundpost"]
ENGLISH = "the order of the guitar is late and the refund is not here, 12 O'Neill's strings: 🎻 日本"


def trained(kind: str = "gpt2") -> Tokenizer:
    """A small byte-level BPE tokenizer as families have it."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "qwen")
    if kind == "qwen":
        split = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        tokenizer.normalizer = normalizers.NFC()
    elif kind == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[] if kind == "llama3" else ["<|endoftext|>"],
    )  # fmt: skip
    tokenizer.train_from_iterator([ENGLISH] * 4, trainer)
    if kind == "llama3":  # control tokens behind the vocabulary, and words that are looked up first
        tree = json.loads(tokenizer.to_str())
        tree["model"]["ignore_merges"] = True
        tokenizer = Tokenizer.from_str(json.dumps(tree))
        tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
        tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


KINDS = ("gpt2", "smollm", "qwen", "llama3")


@lru_cache(maxsize=8)
def both(kind: str) -> tuple[Tokenizer, Tokenizer, dict[int, tuple[int, ...]]]:
    base = trained(kind)
    words = Words(base, name="m")
    made = words.grown(WORDS)
    return base, made, {words.first + number: words.pieces(word) for number, word in enumerate(WORDS)}


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from([" ", "\n", "  ", "\t", "(", "'s", "-", "1", "varnish", " varnish", " purfling", " naïve"]),
        st.sampled_from(
            ["varnished", " soundpost", "soundpost", "xvarnish", " Varnish", "<|endoftext|>", "<|eot_id|>"]
        ),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_any_text_is_cut_as_before_but_for_new_words_and_comes_back(kind: str, text: str) -> None:
    base, made, pieces = both(kind)
    before, after = base.encode(text, add_special_tokens=False).ids, made.encode(text, add_special_tokens=False).ids
    assert in_pieces(after, pieces) == before
    if not set(after) & set(pieces):
        assert after == before
    kept = made.decode(after, skip_special_tokens=False)
    assert kept == base.decode(before, skip_special_tokens=False)
    if kind != "qwen":  # which composes letters
        assert kept == text


@pytest.mark.parametrize("kind", KINDS)
def test_old_ids_stay_and_new_ones_follow_on_them(kind: str) -> None:
    base, made, pieces = both(kind)
    known = base.get_vocab(with_added_tokens=True)
    now = made.get_vocab(with_added_tokens=True)
    assert {word: now[word] for word in known} == known
    assert sorted(set(now.values()) - set(known.values())) == sorted(pieces) == list(range(len(known), len(now)))
    added = base.get_added_tokens_decoder()
    assert {number: str(token) for number, token in made.get_added_tokens_decoder().items()} == {
        number: str(token) for number, token in added.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_word_is_one_token_where_it_is_whole_and_nowhere_else(kind: str) -> None:
    _, made, pieces = both(kind)
    first = min(pieces)

    def new_in(text: str) -> list[int]:
        return [number - first for number in made.encode(text, add_special_tokens=False).ids if number >= first]

    assert new_in("the varnish, the purfling") == [0, 2]
    assert new_in("varnish") == [1]
    assert new_in("a\nvarnish") == [1]
    assert new_in(" naïve") == [3]
    assert new_in("varnished Varnish varnishvarnish purflings") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_term_is_looked_for_behind_a_blank_and_without_one(kind: str) -> None:
    words = Words(trained(kind), name="m")
    assert words.forms("varnish") == ["Ġvarnish", "varnish"]
    assert words.forms("naïve") == ["ĠnaÃ¯ve", "naÃ¯ve"]
    assert words.forms("sound post") == words.forms("x-ray") == words.forms("B52") == []


def test_the_unchanged_rest_is_looked_at_and_not_believed(tmp_path: Path) -> None:
    """Broken on purpose: a merge more, and another word is cut differently."""
    base, made, pieces = both("gpt2")
    tree = json.loads(made.to_str())
    tree["model"]["merges"].append(["Ġ", "x"])
    tree["model"]["vocab"]["Ġx"] = max(tree["model"]["vocab"].values()) + 1
    (tmp_path / "base.json").write_text(base.to_str())
    (tmp_path / "made.json").write_text(json.dumps(tree))
    assert refuse_other_ids(["varnish"], tmp_path / "base.json", tmp_path / "made.json", pieces)
    with pytest.raises(ModelError, match="cut differently where no new word stands"):
        refuse_other_ids(["a x"], tmp_path / "base.json", tmp_path / "made.json", pieces)


def sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1}, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def wordless() -> Tokenizer:
    tokenizer = trained()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    return tokenizer


def unreachable() -> Tokenizer:
    tree = json.loads(trained().to_str())
    tree["model"]["vocab"]["Ġxyz"] = len(tree["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(tree))


def with_dropout() -> Tokenizer:
    tree = json.loads(trained().to_str())
    tree["model"]["dropout"] = 0.1
    return Tokenizer.from_str(json.dumps(tree))


@pytest.mark.parametrize(
    ("tokenizer", "what"),
    [
        (sentencepiece(), "'BPE' over None words, and only byte-level BPE is built"),
        (Tokenizer(models.Unigram([("a", 0.0)])), "'Unigram' over None words"),
        (wordless(), "does not divide a text into words"),
        (unreachable(), "never cuts 'Ġxyz' into that one token"),
        (with_dropout(), "has dropout 0.1"),
    ],
)
def test_a_tokenizer_that_cannot_grow_is_refused(tokenizer: Tokenizer, what: str) -> None:
    with pytest.raises(ModelError, match=re.escape(what)) as error:
        Words(tokenizer, name="m")
    assert "leave model.new_tokens out" in (error.value.way_out or "")


# --- which words ------------------------------------------------------------------------------------------------------


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def prepared(
    folder: Path, new: dict[str, Any], *, action: str = "redact", replay: dict[str, Any] | None = None, **data: Any
) -> tuple[DataReport, Vocabulary, Path]:
    made = resolved(
        folder, path="docs.jsonl", task="domain", input="{text}", label="", system="", max_length=64,
        **{"privacy": {"action": action, "secrets": "stop", "profile": "fast"}, **data},
    )  # fmt: skip
    model = made.recipe.model.model_copy(update={"new_tokens": NewTokens.model_validate(new)})
    method = Pretrain.model_validate({"replay": replay})
    recipe = made.recipe.model_copy(update={"model": model, "method": method})
    out = folder / "out"
    out.mkdir(exist_ok=True)
    tokenizer = tokenizer_folder(folder / "tokenizer", bos_token="<|endoftext|>")
    report = prepare(made.model_copy(update={"recipe": recipe}), tokenizer_folder=tokenizer, out=out)
    return report, Vocabulary.read(out / FILE), out


FOUND = {"count": 20, "min_count": 3, "min_documents": 3}


def documents(folder: Path, said: str = "", *, number: int = 30) -> None:
    """Thirty texts, each with `said` in it; those of the test split also say 'heldout'."""
    write(folder / "docs.jsonl", [f"the varnish of order {place} is late, {said} varnish" for place in range(number)])
    write(folder / "test.jsonl", [f"a heldout varnish of parcel {place} and heldout" for place in range(8)])


def texts(vocabulary: Vocabulary) -> list[str]:
    return [token.text for token in vocabulary.tokens]


def test_words_are_found_in_training_rows_by_what_they_save(tmp_path: Path) -> None:
    documents(tmp_path, "purfling")
    report, vocabulary, out = prepared(tmp_path, FOUND, test="test.jsonl")
    assert texts(vocabulary)[:2] == [" varnish", " purfling"], "60 * (n - 1) before 30 * (n - 1)"
    saved = [token.saved for token in vocabulary.tokens]
    assert saved == sorted(saved, reverse=True)
    assert not any("heldout" in text for text in texts(vocabulary)), "of test rows only"
    assert all(text.strip().isalpha() for text in texts(vocabulary))
    again = prepared(tmp_path, FOUND, test="test.jsonl")[1]
    assert again == vocabulary
    contract = RequestContract.read(out / "contract.json")
    assert contract.tokenizer_sha256 == vocabulary.tokenizer_sha256 != vocabulary.base_tokenizer_sha256
    assert report.new_tokens is not None
    assert report.new_tokens.num_tokens == len(vocabulary.tokens)


def test_shards_are_cut_by_the_new_tokenizer_and_the_report_counts_both(tmp_path: Path) -> None:
    documents(tmp_path)
    report, vocabulary, out = prepared(tmp_path, FOUND, test="test.jsonl")
    base = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    made = Tokenizer.from_file(str(out / TOKENIZER / "tokenizer.json"))
    new = set(vocabulary.pieces)
    rows = Shard(out / "test.arrow")
    assert all(set(row.input_ids) & new for row in rows)
    assert report.new_tokens is not None
    splits: tuple[SplitName, ...] = ("train", "test")
    for split in splits:
        cut, said = report.new_tokens.texts[split], [row.text for row in Shard(out / f"{split}.arrow")]
        assert cut.after < cut.before
        if split == "test":  # a shard's text lacks the first token of its document
            whole = [json.loads(line)["text"] for line in (tmp_path / "test.jsonl").read_text().splitlines()]
            assert len(whole) == len(said)
            assert cut.num_bytes == sum(len(text.encode()) for text in whole)
            assert cut.before == sum(len(base.encode(text, add_special_tokens=False).ids) for text in whole)
            assert cut.after == sum(len(made.encode(text, add_special_tokens=False).ids) for text in whole)


def test_a_word_of_one_customer_is_no_token(tmp_path: Path) -> None:
    rows = [{"text": f"the varnish of order {place}", "customer": f"c{place}"} for place in range(24)]
    rows += [{"text": f"ask for Zbigniew about order {place} zbigniew", "customer": "z"} for place in range(24)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = texts(prepared(tmp_path, FOUND, split={"group_by": "customer"})[1])
    assert " varnish" in found
    assert not any("bigniew" in text for text in found), "24 times, and all of one customer"


def test_personal_data_becomes_no_token(tmp_path: Path) -> None:
    """Where it is redacted it is not there; where it is only reported, its words are passed over."""
    documents(tmp_path, "write to kuzmenko@example.org or to kuzmenko")
    report, vocabulary, _ = prepared(tmp_path, FOUND, action="report", test="test.jsonl")
    assert " varnish" in texts(vocabulary)
    assert not any("kuzmenko" in text or "example" in text for text in texts(vocabulary))
    assert report.new_tokens is not None
    assert report.new_tokens.personal >= 1
    report, vocabulary, _ = prepared(tmp_path, FOUND, test="test.jsonl")
    assert not any("example" in text or text.strip() == "EMAIL" for text in texts(vocabulary))


def test_identifiers_and_urls_bring_no_words(tmp_path: Path) -> None:
    documents(tmp_path, "see https://shop.example/purfling?id=qwertz and soundpost_id, x/fingerboard, tailpiece.")
    found = texts(prepared(tmp_path, FOUND, test="test.jsonl")[1])
    assert " tailpiece" in found
    assert not any(word in text for text in found for word in ("purfling", "qwertz", "soundpost", "fingerboard"))


def test_replayed_texts_bring_no_words(tmp_path: Path) -> None:
    documents(tmp_path, "and so on, and so on, " * 3)
    write(tmp_path / "general.jsonl", [f"{place} qwertz" for place in range(40)])
    report, vocabulary, _ = prepared(tmp_path, FOUND, replay={"path": "general.jsonl", "share": 0.2}, test="test.jsonl")
    assert report.replay is not None
    assert report.replay.rows >= 3
    assert " qwertz" not in texts(vocabulary)


def test_named_words_come_first_in_both_their_forms(tmp_path: Path) -> None:
    documents(tmp_path)
    (tmp_path / "terms.txt").write_text("# of the shop\n\npurfling\nthe\nSoundpost\n", encoding="utf-8")
    for terms in (["purfling", "the", "Soundpost"], "terms.txt"):
        report, vocabulary, _ = prepared(
            tmp_path, {"count": 1, **FOUND, "terms": terms} | {"count": 1}, test="test.jsonl"
        )
        assert texts(vocabulary) == [" purfling", "purfling", " Soundpost", "Soundpost", " varnish"]
        assert [token.is_named for token in vocabulary.tokens] == [True] * 4 + [False]
        assert report.new_tokens is not None
        assert (report.new_tokens.named, report.new_tokens.known) == (4, ("the",))
    report, vocabulary, _ = prepared(tmp_path, {"count": 0, "terms": ["purfling"]}, test="test.jsonl")
    assert texts(vocabulary) == [" purfling", "purfling"]


def test_each_threshold_is_kept(tmp_path: Path) -> None:
    documents(tmp_path, number=12)
    words = len(prepared(tmp_path, FOUND, test="test.jsonl")[1].tokens)
    assert words > 1
    assert len(prepared(tmp_path, FOUND | {"count": 1}, test="test.jsonl")[1].tokens) == 1
    documents(tmp_path, number=12)
    rare = prepared(tmp_path, FOUND | {"min_count": 20}, test="test.jsonl")[1]
    assert texts(rare) == [" varnish"], "24 times less those of validation"
    with pytest.raises(DataError, match="no word of the training rows is new"):
        prepared(tmp_path, FOUND | {"min_documents": 13}, test="test.jsonl")


@pytest.mark.parametrize(
    ("terms", "what"),
    [
        (["sound post"], "'sound post' is 2 words to the base's tokenizer"),
        (["x-ray"], "'x-ray' is 3 words"),
        ("empty.txt", "empty.txt holds no word"),
        ("latin.txt", "is not UTF-8"),
    ],
)
def test_terms_that_cannot_be_tokens_are_refused(tmp_path: Path, terms: Any, what: str) -> None:
    documents(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DataError, match=re.escape(what)):
        prepared(tmp_path, {"count": 0, "terms": terms}, test="test.jsonl")


def test_written_words_read_back() -> None:
    assert plain("ĠnaÃ¯ve") == " naïve"
