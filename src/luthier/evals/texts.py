"""How well a model expects held-out documents: all that is learned of them, and the terms of the domain in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.data.contract import Renderer
from luthier.data.shards import Example
from luthier.engines.ask import Asker
from luthier.eval_records import Difference, SystemScore, Terms, TermScore
from luthier.evals.glossary import Places
from luthier.evals.headline import against_parent
from luthier.evals.intervals import Bootstrap
from luthier.evals.metrics import perplexity
from luthier.evals.observed import Floats, Observed

Tick = Callable[[int, int], None]

SHOWN = 40
"""Terms that the report lists."""


@dataclass(frozen=True)
class Read:
    """What one model makes of N pieces of documents."""

    observed: Observed
    terms: tuple[Floats, ...] = ()
    """Of each piece, for each place of a term in it: nats of its tokens, and their number; shape [places, 2]."""


def read_texts(asker: Asker, examples: Sequence[Example], places: Places | None = None, *, tick: Tick | None) -> Read:
    """Negative log-likelihood of what is learned of each piece, all before it in the piece given.

    Args:
        asker: the model.
        examples: N pieces, see `luthier.data.documents`.
        places: of terms among their tokens.
        tick: told of progress.
    """
    nats, terms = [], []
    for number, losses in enumerate(asker.engine.each(lambda piece: -asker.engine.logprobs(piece.input_ids), examples)):
        learned = np.array(examples[number].supervised[1:], dtype=np.bool_)
        nats.append(float(losses[learned].sum()))
        found = places.spans[number] if places is not None else ()
        ids, count = examples[number].input_ids, asker.renderer.base_tokens
        rows = [(losses[start - 1 : end - 1].sum(), count(ids[start:end])) for _, start, end in found]
        terms.append(np.array(rows, dtype=np.float64).reshape(-1, 2))
        if tick is not None:
            tick(number + 1, len(examples))
    observed = Observed(
        expected=("",) * len(examples),
        predicted=("",) * len(examples),
        answer_nll=np.array(nats, dtype=np.float64),
        answer_tokens=np.array([_learned(piece, asker.renderer) for piece in examples], dtype=np.float64),
        answer_bytes=np.array([len(piece.text.encode()) for piece in examples], dtype=np.float64),
    )
    return Read(observed, tuple(terms))


def _learned(piece: Example, renderer: Renderer) -> int:
    """Learned tokens of a piece, as the base cuts its text."""
    return renderer.base_tokens(
        number for number, learned in zip(piece.input_ids[1:], piece.supervised[1:], strict=True) if learned
    )


def compare_terms(
    base: Sequence[Floats], tuned: Sequence[Floats], places: Places, *, bootstrap: Bootstrap
) -> Terms | None:
    """Perplexity of the terms' tokens under both models; None where no term occurs.

    Args:
        base: of the base model, `Read.terms` of the pieces that count.
        tuned: of the tuned one.
        places: of the same pieces.
        bootstrap: over these pieces, by group.
    """
    names = [name for spans in places.spans for name, _, _ in spans]
    if not names:
        return None
    of_base, of_tuned = (np.array([part.sum(axis=0) for part in parts]) for parts in (base, tuned))
    sums: dict[str, Floats] = {}
    for name, one, other in zip(names, np.concatenate(base), np.concatenate(tuned), strict=True):
        sums[name] = sums.get(name, np.zeros(4)) + np.array([one[0], other[0], one[1], 1.0])
    commonest = sorted(sums.items(), key=lambda pair: (-pair[1][3], pair[0]))[:SHOWN]
    scores = tuple(
        TermScore(
            term=name,
            occurrences=int(total[3]),
            base=float(np.exp(total[0] / total[2])),
            tuned=float(np.exp(total[1] / total[2])),
        )
        for name, total in commonest
    )
    return Terms(
        source=places.source,
        num_terms=len(sums),
        occurrences=len(names),
        num_tokens=int(of_base[:, 1].sum()),
        unmatched=places.unmatched,
        base=bootstrap.interval(of_base, perplexity.value),
        tuned=bootstrap.interval(of_tuned, perplexity.value),
        ratio=bootstrap.ratio(of_tuned, of_base, perplexity.value),
        terms=scores,
    )


def text_headline(
    systems: Sequence[SystemScore],
    differences: Sequence[Difference],
    terms: Terms | None,
    *,
    num_items: int,
    num_groups: int,
) -> str:
    """The one sentence that may be claimed of a model that goes on with texts."""
    values = {system.system: system.metrics["bits_per_byte"] for system in systems}
    gap = next(one.interval for one in differences if (one.metric, one.against) == ("bits_per_byte", "base"))
    tuned, base = values["tuned"], values["base"]
    if gap.high < 0:
        against = f"{-gap.point:.3f} fewer than the base model"
    elif gap.low > 0:
        against = f"{gap.point:.3f} more than the base model"
    else:
        against = f"no difference to the base model is shown, {gap.point:+.3f}"
    of_terms = (
        f"; perplexity of {terms.num_terms} terms of the domain is {terms.tuned.point:.2f} against "
        f"{terms.base.point:.2f} (ratio {terms.ratio.ends('.2f')})"
        if terms is not None
        else ""
    )
    gaps = {one.against: one.interval for one in differences if one.metric == "bits_per_byte"}
    of_parents = against_parent(values, gaps, higher_is_better=False)
    return (
        f"On {num_items} pieces of held-out documents in {num_groups} groups the tuned model needs {tuned.point:.3f} "
        f"bits per byte ({tuned.level:.0%} interval {tuned.ends()}), {against} "
        f"({gap.ends('+.3f')}; base model {base.point:.3f}){of_terms}{of_parents}."
    )
