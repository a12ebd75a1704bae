"""Every system that an evaluation can compare has its names in one place."""

from __future__ import annotations

from typing import get_args

from luthier.spec.recipe import Baseline
from luthier.systems import PARENT, PRUNED, SHORT, is_in_first_line, place, short_title, subject, system_title

SYSTEMS = (*get_args(Baseline), "base_per_token", PRUNED, "tuned", f"{PARENT}half-a/0123456789ab")


def test_each_has_a_title_of_its_own_a_short_one_and_the_beginning_of_a_sentence() -> None:
    titles = [system_title(system) for system in SYSTEMS]
    assert len(set(titles)) == len(titles), "a leaderboard tells contenders apart by them"
    assert all(0 < len(short_title(system)) <= SHORT for system in SYSTEMS)
    assert short_title(SYSTEMS[-1]) == "half-a/012345…"
    assert subject(SYSTEMS[-1]) == "The merged run half-a/0123456789ab"
    assert all(subject(system)[0].isupper() for system in SYSTEMS)


def test_what_counts_words_or_guesses_is_told_first_and_the_tuned_model_last() -> None:
    order = sorted(SYSTEMS, key=place)
    assert (order[0], order[-1]) == ("tfidf_logreg", "tuned")
    first = {system for system in SYSTEMS if is_in_first_line(system)}
    assert first == {"tfidf_logreg", "tfidf_ridge", "few_shot", "length", "base_per_token", "mean"}
