"""Records of one small run that fits together, for the tests of govern."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from luthier.data_report import DataReport, Leakage, SplitReport
from luthier.eval_records import Difference, EvalReport, GeneralText, GlossaryTerm, GlossaryUse, SystemScore
from luthier.govern.gate import decide
from luthier.records import Artifact, GateDecision, Interval, ModelShape, ParityCheck
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe
from luthier.train_records import TrainResult

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


def interval(point: float, low: float, high: float, *, level: float = 0.95) -> Interval:
    return Interval(point=point, low=low, high=high, level=level, n=300)


def resolved(
    *,
    targets: dict[str, str] | None = None,
    non_regression: dict[str, str] | None = None,
    export: tuple[str, ...] = ("merged",),
) -> ResolvedRecipe:
    return ResolvedRecipe(
        recipe=Recipe.model_validate(
            {
                "name": "tickets",
                "objective": {
                    "targets": {"intent.macro_f1": ">= 0.80"} if targets is None else targets,
                    "non_regression": {"general.perplexity": "<= 1.05x"} if non_regression is None else non_regression,
                },
                "model": {"name": "small"},
                "data": {
                    "train": [
                        {
                            "path": "tickets.csv",
                            "name": "intent",
                            "task": "classification",
                            "input": "{text}",
                            "label": "intent",
                        }
                    ]
                },
                "method": {"type": "sft"},
                "adapter": {"type": "lora", "r": 8, "alpha": 16.0},
                "train": {"learning_rate": 2e-4},
                "export": export,
            }
        ),
        reasons={},
        notes=(),
        folder=".",
        data_sha256={"data.train.0.path": "sha-csv"},
        model_sha256="sha-base",
        luthier_version="0.1.0",
    )


def shape(**changes: Any) -> ModelShape:
    return ModelShape(
        name="small",
        kind="gguf",
        path="small.gguf",
        sha256="sha-base",
        architecture="llama",
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        intermediate_size=16,
        vocab_size=32,
        max_positions=64,
        tied_embeddings=True,
        num_parameters=1234,
        num_bytes=100,
        quantisation="Q4_1",
        license="Apache-2.0",
        license_source="GGUF header",
    ).model_copy(update=changes)


def data(**changes: Any) -> DataReport:
    split = SplitReport(
        rows=300,
        tokens=900,
        supervised_tokens=600,
        groups=200,
        labels={"a": 150, "b": 150},
        length_p50=10,
        length_p95=20,
        length_max=30,
        length_counts=(1, 2),
        sha256="sha-train",
    )
    return DataReport(
        name="intent",
        task="classification",
        rows_in=1000,
        rows_out=900,
        dropped={"duplicate": 60, "empty": 40},
        fates=(),
        steps=(),
        splits={
            "train": split,
            "validation": split.model_copy(update={"sha256": "", "rows": 0}),
            "test": split.model_copy(update={"sha256": "sha-test", "rows": 303, "contaminated": 3}),
        },
        split_rule="by customer_id, seed 0",
        findings={},
        findings_action="report",
        secrets_action="stop",
        conflicts=0,
        similar_labels=(),
        rare_labels={},
        review=None,
        changes=(),
        views=(),
        leakage=(Leakage(split="test", exact=2, group=1),),
        end_of_turn_supervised=True,
        truncated_rows=0,
        license="CC-BY-4.0",
        synthetic=True,
        contract_sha256="sha-contract",
        source_sha256={"tickets.csv": "sha-csv"},
    ).model_copy(update=changes)


def train(**changes: Any) -> TrainResult:
    return TrainResult(
        method="sft",
        steps=40,
        best_step=30,
        best_metric="macro_f1",
        best_value=0.9,
        stopped_early=False,
        trained_tokens=5000,
        supervised_tokens=900,
        trainable_parameters=99,
        seconds=120.0,
        peak_memory_gib=2.5,
        resumed_from=(),
        history=(),
        weights_sha256="sha-weights",
        data_sha256="sha-train",
        model_sha256="sha-base",
        threads=2,
    ).model_copy(update=changes)


def evaluation(*, tuned: Interval | None = None, ratio: Interval | None = None, **changes: Any) -> EvalReport:
    tuned = tuned or interval(0.87, 0.82, 0.91)
    return EvalReport(
        name="intent",
        task="classification",
        split="test",
        num_items=300,
        num_groups=200,
        systems=(
            SystemScore(
                system="tfidf_logreg",
                title="TF-IDF + logistic regression",
                metrics={"macro_f1": interval(0.85, 0.8, 0.9)},
                seconds=1.0,
            ),
            SystemScore(
                system="base", title="base, zero-shot", metrics={"macro_f1": interval(0.95, 0.94, 0.96)}, seconds=1.0
            ),
            SystemScore(system="tuned", title="tuned", metrics={"macro_f1": tuned}, seconds=1.0),
        ),
        differences=(
            Difference(
                system="tuned",
                against="base",
                metric="macro_f1",
                interval=interval(-0.08, -0.1, -0.06),
                p_value=float("nan"),
            ),
        ),
        classes=(),
        labels=("a", "b"),
        confusion=((1, 2), (3, 4)),
        mistakes=(),
        general=GeneralText(
            source="general-english",
            num_tokens=500,
            base=interval(20, 18, 22),
            tuned=interval(20.2, 18, 22),
            ratio=ratio or interval(1.01, 0.99, 1.03),
        ),
        headline="The tuned model reaches 0.87.",
        resamples=2000,
        interval_method="bootstrap over groups",
        data_sha256="sha-test",
        weights_sha256="sha-weights",
        peak_memory_gib=2.0,
        seconds=60.0,
    ).model_copy(update=changes)


def glossary_use(**changes: Any) -> GlossaryUse:
    values: dict[str, Any] = {
        "source": "terms.tsv",
        "num_terms": 9,
        "met": 5,
        "occurrences": 40,
        "num_items": 30,
        "ratio": interval(1.5, 1.2, 1.9),
        "num_missed": 1,
        "missed": (GlossaryTerm(term="a|b", accepted=("x", "y"), occurrences=7, base=1, tuned=3),),
    }
    return GlossaryUse(**(values | changes))


def with_terms(use: GlossaryUse, *, tuned: Interval | None = None) -> EvalReport:
    """An evaluation in which terms of a glossary were met, where `tuned` says how many are kept."""
    made = evaluation(glossary=use)
    kept = {"base": interval(0.4, 0.3, 0.5), "tuned": tuned} if tuned is not None else {}
    systems = tuple(
        one.model_copy(update={"metrics": {**one.metrics, "term_accuracy": kept[one.system]}})
        if one.system in kept
        else one
        for one in made.systems
    )
    return made.model_copy(update={"systems": systems})


def parity(**changes: Any) -> ParityCheck:
    return ParityCheck(
        prompts=8, ids_equal=True, max_logit_error=2e-6, bound=1e-4, greedy_equal=8, passed=True
    ).model_copy(update=changes)


def artifact(**changes: Any) -> Artifact:
    return Artifact(
        kind="merged",
        path="artifacts/merged",
        sha256={"model.safetensors": "sha-merged"},
        num_bytes=1000,
        parity=parity(),
        made_from="sha-weights",
    ).model_copy(update=changes)


def decision(**changes: Any) -> GateDecision:
    """The gate's decision on the run above, with some of its records replaced."""
    records: dict[str, Any] = {
        "resolved": resolved(),
        "shape": shape(),
        "report": evaluation(),
        "artifacts": [artifact()],
        "data": data(),
        "eval_sha256": "sha-eval",
        "artifacts_sha256": "sha-index",
        "now": NOW,
    }
    return decide(**{**records, **changes})
