"""Records of new tokens: which words of the training rows became tokens of their own, and that nothing else changed."""

from __future__ import annotations

from pydantic import Field

from luthier.records import Record, SplitName


class NewToken(Record):
    """A word of the training rows that became a token of its own (`model.new_tokens`)."""

    text: str = Field(description="As it stands in a text, with the blank before it where that belongs to the token.")
    id: int
    pieces: tuple[int, ...] = Field(min_length=2, description="The base's tokens for it.")
    occurrences: int = Field(description="In the running text of the training rows.")
    documents: int = Field(description="Groups of training rows that it occurs in.")
    is_named: bool = Field(description="Whether the recipe names it; else it was found.")

    @property
    def saved(self) -> int:
        """Tokens that the training rows have less of."""
        return self.occurrences * (len(self.pieces) - 1)


class Vocabulary(Record):
    """vocabulary.json: what stands in the tokenizer beside it that is not in that of the base."""

    tokens: tuple[NewToken, ...] = Field(description="In the order of their ids, which follow on those of the base.")
    base_tokenizer_sha256: str
    tokenizer_sha256: str

    @property
    def pieces(self) -> dict[int, tuple[int, ...]]:
        """New id -> the base's ids in its place."""
        return {token.id: token.pieces for token in self.tokens}


class CutText(Record):
    """Into how many tokens the texts of a split are cut; templates and control tokens are not among them."""

    num_bytes: int
    before: int = Field(description="Tokens of the base's tokenizer.")
    after: int

    @property
    def a_byte(self) -> tuple[float, float]:
        """Tokens over bytes, before and after."""
        return self.before / max(1, self.num_bytes), self.after / max(1, self.num_bytes)


class NewWords(Record):
    """What `model.new_tokens` made of the tokenizer."""

    num_tokens: int
    named: int = Field(description="Of them, those of words that the recipe names.")
    shown: tuple[NewToken, ...] = Field(description="The first, those that save most before others.")
    known: tuple[str, ...] = Field(description="Words that the recipe names and that were one token already.")
    personal: int = Field(description="Words that were common enough, and stand in personal data that was found.")
    texts: dict[SplitName, CutText]
