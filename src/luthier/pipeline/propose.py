"""What a search tries next, by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011, section 4).

The estimator is made anew for each trial, from the trials before it and a seed of its own, so that a search that was
interrupted proposes what it would have proposed.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from luthier.errors import MissingExtra
from luthier.search_records import SearchRecord, Trial
from luthier.spec.search import Among, Between, Search

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

_TECHNIQUE = "technique"
_DRAWS = 50


def refuse_missing_optuna() -> None:
    """Raises MissingExtra where it is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingExtra("optuna", extra="search", purpose="search.settings")


def propose(section: Search, record: SearchRecord) -> Trial | None:
    """The trial after those of `record`, another than each of them; None where in many draws there was no other.

    A third of all trials are drawn evenly before the estimator has a say, and so is one that it would try again.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: _distribution(one) for key, one in (section.settings or {}).items()}
    candidates = section.candidates or (record.technique,)
    if len(candidates) > 1:
        space[_TECHNIQUE] = optuna.distributions.CategoricalDistribution(candidates)
    number = len(record.trials)
    for draw in range(_DRAWS):
        seed = section.seed + number + draw * 1000
        evenly = max(2, section.num_trials // 3) if draw == 0 else number + 1
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=evenly)
        params = _study(sampler, record, space).ask(space).params
        technique = str(params.pop(_TECHNIQUE, candidates[0]))
        if all((one.technique, one.settings) != (technique, params) for one in record.trials):
            return Trial(number=number, technique=technique, settings=params)
    return None


def _study(sampler: BaseSampler, record: SearchRecord, space: dict[str, BaseDistribution]) -> Study:
    """What is known of the trials so far; those of the first rung are comparable with each other."""
    from optuna import create_study
    from optuna.trial import TrialState, create_trial

    study = create_study(direction="maximize" if record.higher_is_better else "minimize", sampler=sampler)
    for trial in record.trials:
        params = {**trial.settings, **({_TECHNIQUE: trial.technique} if _TECHNIQUE in space else {})}
        state, value = (TrialState.COMPLETE, trial.rungs[0].score) if trial.rungs else (TrialState.FAIL, None)
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=space))
    return study


def _distribution(one: Between | Among) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(one, Among):
        return CategoricalDistribution(one.choices)
    if isinstance(one.low, int) and isinstance(one.high, int):
        return IntDistribution(one.low, one.high, log=one.log)
    return FloatDistribution(float(one.low), float(one.high), log=one.log)
