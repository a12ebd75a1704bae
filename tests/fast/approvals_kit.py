"""A finished run whose gate refused it, written from sample records; no model is asked for it. Keys of three people."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import samples

from luthier.approval_records import Standing
from luthier.data_report import DataReport
from luthier.govern.keys import PrivateKey, new_key, read_key
from luthier.pipeline.standing import standing_of
from luthier.pipeline.verdict import conclude
from luthier.records import GateDecision
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_files, write_atomic
from luthier.store.runs import RunFolder, weights_sha256


@dataclass(frozen=True)
class Office:
    """A folder of runs, and who works there: Ana asks, Bob may approve, Eve may not."""

    out: Path
    run: RunFolder
    keys: dict[str, PrivateKey]

    @property
    def approvers(self) -> Path:
        return self.out / "approvers.txt"

    @property
    def gate(self) -> GateDecision:
        return GateDecision.read(self.run.gate)

    @property
    def standing(self) -> Standing:
        return standing_of(self.run, self.gate)

    def allow(self, *names: str) -> None:
        """Write the approvers' file."""
        self.approvers.write_text("".join(f"{name} {self.keys[name].public.line}\n" for name in names))

    def decide(self, key: str | None = None) -> GateDecision:
        """As `luthier gate` does once all stages are done."""
        signing = self.keys[key] if key else None
        return conclude(self.run, ResolvedRecipe.read(self.run.resolved), actor="me", key=signing)[1]

    def improve(self) -> None:
        """Another evaluation, as after a change of the run; it still misses its target."""
        report = samples.eval_report().model_copy(update={"weights_sha256": weights_sha256(self.run.tuned)})
        write_atomic(self.run.eval_report, report.model_copy(update={"resamples": 999}).to_json())


def write_run(out: Path, *, target: str = ">= 0.99") -> RunFolder:
    """All files of a run that its gate reads; by the target it is refused."""
    run = RunFolder.create(out, "support-intents", "1a2b3c")
    resolved = samples.resolved(
        objective={"targets": {"intent.macro_f1": target}, "non_regression": {"general.perplexity": "<= 9x"}}
    )
    adapter = run.train / "adapter" / "adapter_model.safetensors"
    adapter.parent.mkdir(parents=True, exist_ok=True)
    adapter.write_bytes(b"weights")
    weights = weights_sha256(run.tuned)
    artifacts = []
    for one in samples.artifacts():
        for name in one.sha256:
            (run.path / one.path).mkdir(parents=True, exist_ok=True)
            (run.path / one.path / name).write_text(f"{one.kind} {name}")
        changes = {"made_from": weights, "sha256": sha256_files(run.path / one.path)}
        artifacts.append(one.model_copy(update=changes).model_dump(mode="json"))
    write_atomic(run.recipe, "name: support-intents\n")
    write_atomic(run.resolved, resolved.to_json())
    write_atomic(run.profile, samples.profile().to_json())
    write_atomic(run.shape, samples.shape().to_json())
    write_atomic(run.plan, samples.plan().to_json())
    write_atomic(run.data_report, samples.data_report().to_json())
    write_atomic(run.train_result, samples.train_result(weights_sha256=weights).to_json())
    write_atomic(run.eval_report, samples.eval_report(weights_sha256=weights).to_json())
    write_atomic(run.artifacts_index, json.dumps(artifacts))
    assert DataReport.read(run.data_report)
    return run


def office(folder: Path) -> Office:
    """Ana, Bob and Eve with a key each; Bob and Carl may approve. The gate has refused."""
    keys = {}
    for name in ("ana", "bob", "carl", "eve"):
        path, _ = new_key(folder / "keys", name, passphrase="")
        keys[name] = read_key(path, passphrase="")
    made = Office(folder / "runs", write_run(folder / "runs"), keys)
    made.allow("ana", "bob", "carl")
    made.decide()
    return made
