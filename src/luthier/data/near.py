"""Texts that nearly say the same: MinHash and banding find candidates, the exact Jaccard index decides.

For texts A and B with sets of shingles (short parts) S(A) and S(B) the Jaccard index is
J = |S(A) & S(B)| / |S(A) | S(B)|. The least of a set's hashes under a random permutation is equal for A and B with
probability J (Broder 1997, "On the resemblance and containment of documents"), so R least hashes are all equal with
J^R, and at least one of B bands of R is equal with 1 - (1 - J^R)^B (Leskovec, Rajaraman, Ullman, "Mining of Massive
Datasets", section 3.4). Only pairs with an equal band are compared, and they are compared exactly: what is found is
true, and a pair just at the threshold is missed with probability `_MISSED` at most, more similar ones far less often.

Shapes: N texts, R hashes a band, B bands, L shingles of a text.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
"""Characters of a shingle: a changed word costs its letters and four more, whatever the language."""

_MISSED = 0.005
_MOST_HASHES = 160
_MOST_ROWS_OF_BAND = 16
_BATCH = 2**18
"""Shingle hashes worked on at once: a megabyte, which the processor's cache holds."""
_MOST_IN_BUCKET = 16
"""Members of a bucket that a text is compared with, the newest first; this keeps the time linear."""
_MOST_CACHED = 2_000_000
"""Shingles of recently compared texts that are kept, some 200 MB."""

UInt32s = NDArray[np.uint32]
UInt64s = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Match:
    """A text that nearly says the same."""

    index: int
    jaccard: float


def shingles(text: str) -> frozenset[str]:
    """All parts of `SHINGLE` characters; of a shorter text there is one, the text itself."""
    padded = text.ljust(SHINGLE, "\0")
    return frozenset({padded[start : start + SHINGLE] for start in range(len(padded) - SHINGLE + 1)})


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of shingles that both have among those that either has."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def bands_for(threshold: float) -> tuple[int, int]:
    """(B, R): the longest bands, for they bring the fewest candidates, that still miss a pair at the threshold seldom.

    The least B with (1 - threshold^R)^B <= `_MISSED` for the largest R that needs no more than `_MOST_HASHES` hashes.
    """
    found = (1, _MOST_ROWS_OF_BAND)
    for rows in range(1, _MOST_ROWS_OF_BAND + 1):
        chance = threshold**rows
        bands = 1 if chance >= 1 else math.ceil(math.log(_MISSED) / math.log1p(-chance))
        if bands * rows <= _MOST_HASHES:
            found = (bands, rows)
    return found


@dataclass(frozen=True)
class Signatures:
    """What MinHash keeps of N texts; each text's own, whatever the others are."""

    keys: UInt64s
    """[N, B] one number for the R least hashes of a band."""
    sketches: NDArray[np.uint8]
    """[N, B * R] a byte of each least hash."""

    def of(self, places: NDArray[np.int64]) -> Signatures:
        """Those of some of the texts."""
        return Signatures(self.keys[places], self.sketches[places])


def sign(texts: Sequence[str], threshold: float) -> Signatures:
    """The signatures of texts that are to be compared at a threshold."""
    keys_BN, sketches = _least_hashes(texts, *bands_for(threshold))
    return Signatures(np.ascontiguousarray(keys_BN.T), sketches)


def joined(parts: Iterable[Signatures], threshold: float) -> Signatures:
    """Those of all texts, from those of parts of them, in order."""
    bands, rows = bands_for(threshold)
    none = Signatures(np.empty((0, bands), dtype=np.uint64), np.empty((0, bands * rows), dtype=np.uint8))
    found = [none, *parts]
    return Signatures(np.concatenate([one.keys for one in found]), np.concatenate([one.sketches for one in found]))


class NearIndex:
    """Finds, for one of N texts, the texts added before it that nearly say the same.

    `add` and `find` decide which texts are compared at all; both take indexes into `texts`. Everything follows from the
    texts and the order of the calls; no random generator is asked.
    """

    def __init__(self, texts: Sequence[str], threshold: float, signatures: Signatures | None = None) -> None:
        """Args:
        texts: N texts.
        threshold: Jaccard index from which on texts are alike.
        signatures: of the texts for the threshold, where they have been made already.
        """
        self.threshold = threshold
        self.compared = 0
        """Pairs whose shingles were compared."""
        self.crowded = 0
        """Texts that were compared with the newest candidates only, because they had too many."""
        self._texts = texts
        bands, rows = bands_for(threshold)
        signatures = signatures or sign(texts, threshold)
        self._sketches = signatures.sketches
        self._buckets = _buckets(signatures.keys.T)  # [N, B]: number of the bucket; -1 where the text is alone
        # Of K least hashes K J are equal, with this spread; four of them below, an exact comparison is not tried.
        hashes = bands * rows
        self._least_equal = hashes * threshold - 4 * math.sqrt(hashes * threshold * (1 - threshold))
        self._shared = np.asarray((self._buckets >= 0).any(axis=1)).tobytes()
        # In each bucket the added texts form a chain from the newest to the oldest.
        self._newest = array("i", [-1]) * (int(self._buckets.max(initial=-1)) + 1)
        self._older = array("i", [-1]) * self._buckets.size  # [N * B]
        self._cache: dict[int, frozenset[str]] = {}
        self._num_cached = 0

    def forget(self) -> None:
        """Take all added texts out again; what was worked out about the texts stays."""
        self._newest = array("i", [-1]) * len(self._newest)

    def add(self, index: int) -> None:
        """Let later texts be compared with this one."""
        if not self._shared[index]:
            return
        buckets = self._buckets[index].tolist()
        place = index * len(buckets)
        for band, bucket in enumerate(buckets):
            if bucket >= 0:
                self._older[place + band] = self._newest[bucket]
                self._newest[bucket] = index

    def find(self, index: int) -> list[Match]:
        """Added texts whose Jaccard index with this one reaches the threshold, in order of their indexes."""
        if not self._shared[index]:
            return []
        found = []
        own: frozenset[str] | None = None
        for other in self._candidates(index):
            own = own if own is not None else self._shingles(index)
            self.compared += 1
            value = jaccard(own, self._shingles(other))
            if value >= self.threshold:
                found.append(Match(other, value))
        return sorted(found, key=lambda match: match.index)

    def _candidates(self, index: int) -> list[int]:
        """Added texts with an equal band whose sketches do not speak against them."""
        buckets = self._buckets[index].tolist()
        num_bands, newest, older = len(buckets), self._newest, self._older
        found: set[int] = set()
        is_crowded = False
        for band, bucket in enumerate(buckets):
            if bucket < 0:
                continue
            other = newest[bucket]
            for _ in range(_MOST_IN_BUCKET):
                if other < 0:
                    break
                found.add(other)
                other = older[other * num_bands + band]
            is_crowded |= other >= 0
        self.crowded += is_crowded
        found.discard(index)
        if not found:
            return []
        others = np.fromiter(found, dtype=np.int64, count=len(found))
        equal = np.count_nonzero(self._sketches[others] == self._sketches[index], axis=1)
        return list(others[equal >= self._least_equal].tolist())

    def _shingles(self, index: int) -> frozenset[str]:
        found = self._cache.get(index)
        if found is None:
            found = shingles(self._texts[index])
            if self._num_cached + len(found) > _MOST_CACHED:
                self._cache.clear()
                self._num_cached = 0
            self._cache[index] = found
            self._num_cached += len(found)
        return found


def _buckets(keys_BN: UInt64s) -> NDArray[np.int32]:
    """[N, B] number of the bucket of each text in each band, -1 where no other text has an equal band."""
    bands, texts = keys_BN.shape
    buckets_NB = np.full((texts, bands), -1, dtype=np.int32)
    used = 0
    for band, keys in enumerate(keys_BN):
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if texts else np.empty(0, dtype=np.int64)
        sizes = np.diff(np.r_[starts, texts])
        many = sizes > 1
        numbers = np.where(many, used + np.cumsum(many) - 1, -1)
        buckets_NB[order, band] = np.repeat(numbers, sizes)
        used += int(many.sum())
    return buckets_NB


def _least_hashes(texts: Sequence[str], bands: int, rows: int) -> tuple[UInt64s, NDArray[np.uint8]]:
    """[B, N] one number for the R least hashes of each band of each text, and [N, B * R] a byte of each least hash."""
    sketches = np.empty((len(texts), bands * rows), dtype=np.uint8)
    keys_BN = np.empty((bands, len(texts)), dtype=np.uint64)
    numbers = np.array(_numbers("minhash", 2 * bands * rows), dtype=np.uint64)
    multipliers, offsets = (numbers.astype(np.uint32) | np.uint32(1)).reshape(2, bands, rows)
    mix = np.uint64(_numbers("band", 1)[0] | 1)
    for members, hashes_LN in _batches(texts):
        scratch = np.empty_like(hashes_LN)
        for band in range(bands):
            key = np.zeros(len(members), dtype=np.uint64)
            for row, (multiplier, offset) in enumerate(zip(multipliers[band], offsets[band], strict=True)):
                # An odd factor permutes the 32-bit numbers, and hashes are spread evenly over them already.
                np.multiply(hashes_LN, multiplier, out=scratch)
                np.add(scratch, offset, out=scratch)
                least = scratch.min(axis=0)
                key = (key ^ least) * mix
                key ^= key >> np.uint64(29)
                # The high bits of a minimum are nearly always 0, so the byte is taken from a product.
                sketches[members, band * rows + row] = (least * multiplier) >> np.uint32(24)
            keys_BN[band, members] = key
    return keys_BN, sketches


def _batches(texts: Sequence[str]) -> Iterator[tuple[NDArray[np.int64], UInt32s]]:
    """(indexes [n], hashes of their shingles [L, n]) of texts of like length.

    Where a text has fewer than L shingles its last one is repeated, which changes no least hash.
    """
    lengths = np.fromiter((max(len(text), SHINGLE) for text in texts), dtype=np.int64, count=len(texts))
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order].tolist()
    start = 0
    while start < len(ordered):
        # Lengths rise, so the last of a batch is its longest: the batch holds its length times the number of texts.
        stop = start + 1
        while stop < len(ordered) and (stop + 1 - start) * ordered[stop] <= _BATCH:
            stop += 1
        members = order[start:stop]
        yield members, _shingle_hashes([texts[index] for index in members], lengths[members])
        start = stop


def _shingle_hashes(texts: Sequence[str], lengths: NDArray[np.int64]) -> UInt32s:
    """[L, n] 32-bit hash of every shingle of each text."""
    joined = "".join(text.ljust(SHINGLE, "\0") for text in texts)
    letters = np.frombuffer(joined.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32).astype(np.uint64)
    at_each = np.zeros(len(letters) - SHINGLE + 1, dtype=np.uint64)
    for place, weight in enumerate(_numbers("shingle", SHINGLE)):
        at_each += letters[place : place + len(at_each)] * np.uint64(weight | 1)
    at_each ^= at_each >> np.uint64(31)
    at_each *= np.uint64(_numbers("spread", 1)[0] | 1)
    hashes = (at_each >> np.uint64(32)).astype(np.uint32)
    counts = lengths - SHINGLE + 1
    starts = np.cumsum(lengths) - lengths
    places = np.minimum(np.arange(int(counts.max()))[:, None], counts - 1) + starts
    return np.asarray(hashes[places], dtype=np.uint32)


def _numbers(purpose: str, count: int) -> list[int]:
    """Fixed 64-bit numbers that look random; no version of a random generator can change them."""
    return [
        int.from_bytes(hashlib.blake2b(f"{purpose}:{place}".encode(), digest_size=8).digest()) for place in range(count)
    ]
