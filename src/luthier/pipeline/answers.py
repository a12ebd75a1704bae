"""Ask a finished run: `predict` for a file, and the model behind the server. The same contract as in training."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.approval_records import Standing
from luthier.data.features import input_columns
from luthier.data.inputs import missing_column
from luthier.data.read import Fault, Row, read_source
from luthier.errors import DataError, RunError, UserError
from luthier.launch.child import COMPUTING
from luthier.pipeline.authority import approvers_of
from luthier.pipeline.context import Context, set_up_torch
from luthier.pipeline.named import Opened, calling
from luthier.pipeline.progress import Progress
from luthier.pipeline.scores import columns_of, place_of, score_row
from luthier.pipeline.standing import refusal, refuse_faulty, standing_of
from luthier.pipeline.start import Say
from luthier.pipeline.verdict import audit_of, checked_gate
from luthier.records import RequestContract, Version
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import write_atomic
from luthier.store.registry import registry_of
from luthier.store.runs import RunFolder

if TYPE_CHECKING:
    from luthier.engines.ask import Asker


@dataclass(frozen=True)
class Chosen:
    """A run that was asked for by folder or by registry name."""

    run: RunFolder
    version: Version | None

    @property
    def names(self) -> frozenset[str]:
        """Names that clients may ask for: the listed one, the bare name, and the aliases it had when it was opened."""
        aliases = self.version.aliases if self.version else ()
        task = "" if self.run.whole == self.run else f"/{self.run.path.name}"
        known = {self.run.name, *(f"{self.run.name}@{alias}" for alias in aliases)}
        return frozenset({self.model_id, *(f"{name}{task}" for name in known)})

    @property
    def model_id(self) -> str:
        """The name under which clients ask for it."""
        whole = self.run.whole
        named = f"{self.version.name}@{self.version.version}" if self.version else f"{whole.name}/{whole.id}"
        return named if whole == self.run else f"{named}/{self.run.path.name}"

    @property
    def tasks(self) -> dict[str, RunFolder]:
        """Task -> what the run holds of it; of a folder of one task, that task alone."""
        if self.run.whole != self.run:
            return {self.run.path.name: self.run}
        names = ResolvedRecipe.read(self.run.resolved).names
        return dict(zip(names, self.run.tasks(names), strict=True))

    def one_task(self) -> RunFolder:
        """The folder of the only task.

        Raises:
            UserError: there are several.
        """
        tasks = self.tasks
        if len(tasks) > 1:
            raise UserError(
                f"{self.model_id} has {len(tasks)} tasks",
                way_out=f"name one: {', '.join(f'{self.model_id}/{name}' for name in tasks)}"
                if self.version
                else f"name the folder of one: {', '.join(str(folder.path) for folder in tasks.values())}",
            )
        return next(iter(tasks.values()))


def choose(target: str, *, out: Path) -> Chosen:
    """NAME@ALIAS, NAME@NUMBER or NAME from the registry of `out`, with /TASK for one of several; or a run folder.

    Raises:
        RunError: neither; the message lists what is known.
        UserError: the version has no such task.
    """
    if Path(target).is_dir():
        run = RunFolder.open(target, out=out)
        whole = run.whole
        found = [
            one
            for one in registry_of(whole.path.parent.parent).versions(run.name)
            if Path(one.run).resolve() == whole.path.resolve()
        ]
        return Chosen(run, found[-1] if found else None)
    named, _, task = target.partition("/")
    version = registry_of(out).get(named)
    chosen = Chosen(RunFolder.open(version.run, out=out), version)
    if not task:
        return chosen
    if task not in chosen.tasks:
        raise UserError(f"{named} has no task {task!r}", way_out=f"its tasks: {', '.join(chosen.tasks)}")
    return Chosen(chosen.tasks[task], version)


def admit(chosen: Chosen, *, allow_refused: bool, actor: str, say: Say) -> Standing:
    """Let only a version through whose gate passed, or that was approved; what else is written to the audit log.

    Returns:
        By whose word it may be used.

    Raises:
        ApprovalPending: its gate did not pass and an approval is waited for.
        GateRefused: its gate did not pass, and `allow_refused` is not set or there are approvers to be asked.
        RunError: the decision, a request or an approval is missing or was tampered with.
    """
    whole = chosen.run.whole
    gate = checked_gate(whole, chosen.version)
    standing = standing_of(whole, gate)
    refuse_faulty(whole, standing)
    lines = "; ".join(f"{line.line}: {line.observed}" for line in gate.lines if not line.passed)
    if standing.state == "approved":
        say(f"{chosen.model_id} was refused by its gate ({lines}). {standing.words}")
    if standing.may_be_used:
        return standing
    if not allow_refused:
        raise refusal(f"{chosen.model_id} is refused by its gate: {lines}", whole, standing, otherwise=OTHERWISE)
    refuse_going_past(whole, standing, chosen.model_id)
    audit_of(whole.path.parent.parent).append(
        "serve_refused", actor=actor, subject=chosen.model_id, details={"lines": lines, "seal": gate.seal}
    )
    say(f"{chosen.model_id} is served although its gate refused it ({lines}); this was written to the audit log")
    return standing


OTHERWISE = "tune further, or where no approvers' file is, --allow-refused, which is recorded"


def refuse_going_past(whole: RunFolder, standing: Standing, called: str) -> None:
    """Where somebody may approve, `--allow-refused` is no way past the gate.

    Raises:
        GateRefused: there is an approvers' file.
    """
    approvers = approvers_of(whole.path.parent.parent)
    if approvers is not None:
        what = (
            f"{called} is refused by its gate, and as {approvers.where} names approvers, --allow-refused is not enough"
        )
        raise refusal(what, whole, standing)


def open_asker(run: RunFolder) -> Asker:
    """The tuned model of a run of one task, or of one task of a run."""
    return next(iter(open_askers([run]).values()))


def open_askers(tasks: Sequence[RunFolder]) -> dict[str, Asker]:
    """Task -> how it is asked, from the exported adapter where there is one; all tasks of a run ask one model, or
    where each has an adapter of its own, models over one base.
    """
    for name, value in COMPUTING.items():  # read when torch is loaded; stages get it from their parent
        os.environ.setdefault(name, value)
    from luthier.engines.transformers import TransformersEngine, base_and_each

    contexts = [Context(task, Progress()) for task in tasks]
    first, run = contexts[0], tasks[0]
    set_up_torch(first.resolved.recipe.train.threads or 1)
    if run.trains_alone:
        names = [context.contract.name for context in contexts]
        adapters = dict(zip(names, map(_exported_or_trained, tasks), strict=True))
        engines = base_and_each(first.base, adapters)[1]
        return {name: context.asker(engines[name]) for name, context in zip(names, contexts, strict=True)}
    exported = run.artifacts / "adapter"
    adapter = exported if (exported / "adapter_model.safetensors").is_file() else run.tuned
    engine = TransformersEngine.open(first.base, adapter)
    return {context.contract.name: context.asker(engine) for context in contexts}


def _exported_or_trained(task: RunFolder) -> Path:
    """The folder of the adapter that a task has to itself."""
    exported = task.artifacts / "adapter" / task.path.name
    return exported if (exported / "adapter_model.safetensors").is_file() else task.tuned


def predict(asker: Asker, data: Opened, *, output: Path, progress: Progress) -> dict[str, int]:
    """Answer every row of `data`; writes one JSON object a row to `output`, in order, faulty rows with their reason.

    Returns:
        Counts: answered, faults.

    Raises:
        DataError: the file cannot be read, lacks a column that the input template names, or has no rows.
        UserError: the version answers conversations, not rows.
    """
    if not asker.contract.input:
        raise UserError(
            "this version was trained on conversations, not on rows of a table",
            way_out="ask it through `luthier serve`",
        )
    if output.resolve() == data.path.resolve():
        raise UserError(f"--output {output} is the input file", way_out="give another file")
    with calling(data.path, data.named.text):
        read = list(read_source(data.source()))
    _refuse_missing_columns(data.named.text, asker.contract, read)
    answer = _answer_row
    if asker.contract.scores_answers:
        named = {name for row in read if isinstance(row, Row) for name in row.values}
        columns = columns_of(asker.contract, named, of=data.named.text)
        answer = partial(score_row, columns=columns)
    lines, faults = [], 0
    for said in asker.engine.each(lambda row: answer(asker, row), read):
        faults += "error" in said
        lines.append(json.dumps(said, ensure_ascii=False))
        progress("predicting", len(lines), len(read))
    write_atomic(output, "\n".join(lines) + "\n")
    return {"answered": len(read) - faults, "faults": faults}


def _answer_row(asker: Asker, row: Row | Fault) -> dict[str, object]:
    place = place_of(row)
    if isinstance(row, Fault):
        return place | {"error": row.reason, "detail": row.detail}
    try:
        answer = asker.answer_values(row.values)
    except UserError as error:
        return place | {"error": "cannot_be_asked", "detail": error.what}
    cut: dict[str, object] = {"lost_tokens": answer.lost_tokens} if answer.lost_tokens else {}
    if asker.contract.abstain_below is not None:
        cut["abstained"] = answer.abstained
    if answer.value is not None:
        return place | {"value": answer.value if math.isfinite(answer.value) else None, "text": answer.text, **cut}
    if answer.given is not None:
        return place | {"labels": answer.given, "probabilities": answer.probabilities, **cut}
    if answer.label:
        return place | {
            "label": None if answer.abstained else answer.label,
            "probabilities": answer.probabilities,
            **cut,
        }
    return place | {"text": answer.text, **cut}


def _refuse_missing_columns(file: str, contract: RequestContract, read: Sequence[Row | Fault]) -> None:
    columns = {name for row in read if isinstance(row, Row) for name in row.values}
    if not columns:
        raise DataError(f"{file} has no row that can be read", way_out="give a CSV, JSONL or Parquet file with rows")
    for name in input_columns(contract.input, contract.features):
        if name not in columns:
            raise missing_column(name, sorted(columns), key=f"{file}: the input template {contract.input!r}")
    if given := sorted(columns & {feature.name for feature in contract.features}):
        raise DataError(
            f"{file} has the column {given[0]!r}, which this version computes itself", way_out="leave the column out"
        )


def refuse_untrained(run: RunFolder) -> None:
    """Check that a run can be asked.

    Raises:
        RunError: it has not been trained yet.
    """
    if not run.train_result.is_file() or not all(task.contract.is_file() for task in _tasks_of(run)):
        raise RunError(f"{run.path} has not been trained yet", way_out=f"luthier train {run.path}")


def _tasks_of(run: RunFolder) -> list[RunFolder]:
    if run.whole != run or not run.resolved.is_file():
        return [run]
    return run.tasks(ResolvedRecipe.read(run.resolved).names)
