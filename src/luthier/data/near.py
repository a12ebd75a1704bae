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

import copy
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from luthier.data.crew import Alone, Crew, in_parts

SHINGLE = 5
"""Characters of a shingle: a changed word costs its letters and four more, whatever the language."""

_MISSED = 0.005
_MOST_HASHES = 160
_MOST_ROWS_OF_BAND = 16
_BATCH = 2**18
"""Shingle hashes worked on at once: a megabyte, which the processor's cache holds."""
_MOST_IN_BUCKET = 16
"""Members of a bucket before it that a text is compared with; this keeps the time linear."""
_MOST_COMPARED = 4
"""Earlier texts, the likeliest by their least hashes, that a text is compared with exactly."""
_THREADS = 2
"""Bands that are worked on at the same time; each needs room for its pairs."""
_PAIRS = 8192
"""Pairs that are compared exactly in one go."""

Number = TypeVar("Number", np.int64, np.uint64)
Int64s = NDArray[np.int64]
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

    def of(self, places: Int64s) -> Signatures:
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


class NearPairs:
    """Pairs of N texts that nearly say the same: each at least as like as the threshold, and nearly all there are.

    Of a text that is like many earlier ones, the pairs with the few that are likeliest by their least hashes.

    Attributes:
        threshold: Jaccard index from which on texts are alike.
        earlier: the first text of each pair; shape [P].
        later: the second, in rising order; shape [P].
        jaccard: of each pair; shape [P].
        compared: pairs whose shingles were compared.
        crowded: texts of which some candidates were not compared, because there were too many.
    """

    def __init__(
        self,
        texts: Sequence[str],
        threshold: float,
        *,
        signatures: Signatures | None = None,
        left: int | None = None,
        crew: Crew | None = None,
    ) -> None:
        """Args:
        texts: N texts.
        threshold: Jaccard index from which on texts are alike.
        signatures: of the texts for the threshold, where they have been made already.
        left: with it, only pairs of one of the first `left` texts and one of the others are looked for.
        crew: compares; None does it in this process.
        """
        self.threshold = threshold
        self._texts = texts
        signatures = sign(texts, threshold) if signatures is None else signatures
        earlier, later, self.crowded = _candidates(signatures, threshold, left)
        self.compared = len(earlier)
        pairs = list(zip(earlier.tolist(), later.tolist(), strict=True))
        parts = (_said(texts, part) for part in in_parts(pairs, _PAIRS))
        values = itertools.chain.from_iterable((crew or Alone()).each(likenesses, parts))
        self.jaccard = np.fromiter(values, dtype=np.float64, count=len(earlier))
        alike = self.jaccard >= threshold
        self.earlier, self.later, self.jaccard = earlier[alike], later[alike], self.jaccard[alike]

    def among(self, places: Int64s, texts: Sequence[str]) -> NearPairs:
        """The pairs of some of the texts, by their numbers in `places`, which rise; `texts` are these texts."""
        found = copy.copy(self)
        numbers = np.full(len(self._texts), -1)
        numbers[places] = np.arange(len(places))
        here = (numbers[self.earlier] >= 0) & (numbers[self.later] >= 0)
        found.earlier, found.later = numbers[self.earlier[here]], numbers[self.later[here]]
        found.jaccard = self.jaccard[here]
        found._texts = texts
        return found

    def before(self) -> dict[int, list[Match]]:
        """For each text, the earlier ones that it is like, in order; texts that are like none are left out."""
        found: dict[int, list[Match]] = {}
        for earlier, later, value in zip(
            self.earlier.tolist(), self.later.tolist(), self.jaccard.tolist(), strict=True
        ):
            found.setdefault(later, []).append(Match(earlier, value))
        return found

    def compare(self, one: int, other: int) -> float:
        """The Jaccard index of two of the texts."""
        return jaccard(shingles(self._texts[one]), shingles(self._texts[other]))


def _said(texts: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[tuple[str, str]]:
    """The texts of pairs, each made once however many pairs it stands in."""
    said = {place: texts[place] for place in dict.fromkeys(itertools.chain.from_iterable(pairs))}
    return [(said[one], said[other]) for one, other in pairs]


def likenesses(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The Jaccard index of each pair of texts, as `jaccard` of their shingles.

    Shingles stand as numbers of 64 bits: sums of their letters, each times its place's own large odd number. Two of the
    few hundred shingles of a pair share one with a probability below 10^-14.
    """
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    padded = [text.ljust(SHINGLE, "\0") for text in texts]
    letters = np.frombuffer("".join(padded).encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    numbers = np.zeros(max(len(letters) - SHINGLE + 1, 0), dtype=np.uint64)
    for place, weight in enumerate(_numbers("exact", SHINGLE)):
        numbers += letters[place : place + len(numbers)].astype(np.uint64) * np.uint64(weight | 1)
    sets: dict[str, UInt64s] = {}
    start = 0
    for text, whole in zip(texts, padded, strict=True):
        sets[text] = _distinct(numbers[start : start + len(whole) - SHINGLE + 1])
        start += len(whole)
    found = []
    for one, other in pairs:
        both = np.concatenate((sets[one], sets[other]))
        both.sort()
        shared = int(np.count_nonzero(both[1:] == both[:-1]))
        found.append(shared / (len(both) - shared))
    return found


def _candidates(signatures: Signatures, threshold: float, left: int | None) -> tuple[Int64s, Int64s, int]:
    """Pairs with an equal band whose sketches do not speak against them, by the second and then the first of them.

    Of K least hashes K J are equal, with a spread that follows; four of it below, the texts are not compared.

    Returns:
        The first of each pair, the second of each, and how many texts had too many candidates.
    """
    num_texts, num_bands = signatures.keys.shape
    hashes = signatures.sketches.shape[1]
    least_equal = hashes * threshold - 4 * math.sqrt(hashes * threshold * (1 - threshold))
    crowded = np.zeros(num_texts, dtype=bool)

    def likely(band: int) -> Int64s:  # later * N + earlier
        pairs: Int64s = _pairs_of_band(signatures.keys[:, band], left, crowded)
        return np.compress(_equal_hashes(pairs, signatures.sketches) >= least_equal, pairs)

    with ThreadPoolExecutor(_THREADS) as threads:  # the work is numpy's, outside of Python's lock
        found = _distinct(np.concatenate([np.empty(0, dtype=np.int64), *threads.map(likely, range(num_bands))]))
    later, earlier = np.divmod(found, max(num_texts, 1))
    # By the later text, then the likeliest first: each keeps the first of its run.
    order = np.lexsort((earlier, -_equal_hashes(found, signatures.sketches), later))
    starts = np.flatnonzero(np.r_[True, later[1:] != later[:-1]]) if len(later) else np.empty(0, dtype=np.int64)
    rank = np.arange(len(later)) - np.repeat(starts, np.diff(np.r_[starts, len(later)]))
    few = np.sort(order[rank < _MOST_COMPARED])
    crowded[later[order[rank >= _MOST_COMPARED]]] = True
    return earlier[few], later[few], int(crowded.sum())


def _pairs_of_band(keys: UInt64s, left: int | None, crowded: NDArray[np.bool_]) -> Int64s:
    """Texts with an equal key, each with the `_MOST_IN_BUCKET` before it: later * N + earlier. Notes who had more."""
    num_texts = len(keys)
    # Sorted together with their places, which is many times faster than sorting places by them. The low bits that the
    # places take are lost: a pair that is equal in the others alone is told apart by its sketches, as all are.
    place_bits = np.uint64(max(num_texts - 1, 0).bit_length())
    ordered = np.sort(keys >> place_bits << place_bits | np.arange(num_texts, dtype=np.uint64))
    order = (ordered & ((np.uint64(1) << place_bits) - np.uint64(1))).astype(np.int64)
    ordered >>= place_bits
    same = np.flatnonzero(np.r_[False, ordered[1:] == ordered[:-1]]) if num_texts else np.empty(0, dtype=np.int64)
    if not len(same):
        return same
    # Places in `order` that follow an equal key; those of a bucket are a run that begins one place after its first.
    firsts = np.flatnonzero(np.r_[True, same[1:] != same[:-1] + 1])
    start = np.repeat(same[firsts] - 1, np.diff(np.r_[firsts, len(same)]))
    last = same - 1
    if left is not None:
        of_left = np.r_[0, np.cumsum(order < left)]
        ends = np.repeat(same[np.r_[firsts[1:] - 1, len(same) - 1]] + 1, np.diff(np.r_[firsts, len(same)]))
        last = start + (of_left[ends] - of_left[start]) - 1  # rows rise in a bucket: those of the left stand first
        right = order[same] >= left
        same, start, last = same[right], start[right], last[right]
    found = []
    for step in range(_MOST_IN_BUCKET):
        there = last - step >= start
        found.append(order[same[there]] * num_texts + order[last[there] - step])
    crowded[order[same[last - _MOST_IN_BUCKET >= start]]] = True
    return np.concatenate(found)


def _equal_hashes(pairs: Int64s, sketches: NDArray[np.uint8]) -> Int64s:
    """How many bytes of the sketches of each pair are equal."""
    counts = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(pairs), _BATCH):
        later, earlier = np.divmod(pairs[first : first + _BATCH], len(sketches))
        counts.append(np.count_nonzero(sketches[later] == sketches[earlier], axis=1))
    return np.concatenate(counts)


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


def _batches(texts: Sequence[str]) -> Iterator[tuple[Int64s, UInt32s]]:
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


def _shingle_hashes(texts: Sequence[str], lengths: Int64s) -> UInt32s:
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


def _distinct(numbers: NDArray[Number]) -> NDArray[Number]:
    """[n] each number once, in rising order; `np.unique` goes through a hash table, which takes many times as long."""
    ordered = np.sort(numbers)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ordered) else ordered


def _numbers(purpose: str, count: int) -> list[int]:
    """Fixed 64-bit numbers that look random; no version of a random generator can change them."""
    return [
        int.from_bytes(hashlib.blake2b(f"{purpose}:{place}".encode(), digest_size=8).digest()) for place in range(count)
    ]
