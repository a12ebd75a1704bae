"""An MLflow run, through the low-level client: nothing global, no user name, no command line, no telemetry."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from luthier.store.files import sha256_json, write_atomic
from luthier.train.sinks import Start, numbers
from luthier.train_records import LossSpike, StepEvent


class TrackedRun:
    """One MLflow run for all sessions of one run of ours."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._logged: dict[str, int] = {}  # kind of event -> last step that the store has whole

    def write(self, event: StepEvent | LossSpike) -> None:
        from mlflow.entities import Metric

        values = numbers(event)
        if not values or event.step <= self._last(event.kind, [*values][-1]):
            return
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, event.step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _last(self, kind: str, name: str) -> int:
        """The store itself is asked, once, so that a step is neither there twice nor left out after any kill."""
        if kind not in self._logged:
            history = self._client.get_metric_history(self._run_id, name)
            self._logged[kind] = max((metric.step for metric in history), default=0)
        return self._logged[kind]

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run_id, status="FINISHED" if finished else "KILLED")


def begin(start: Start) -> TrackedRun:
    """The run of an earlier session in the same store, or a new one."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")  # read when it is imported
    from mlflow import MlflowClient
    from mlflow.entities import Param

    folder = Path(start.folder)
    elsewhere = "" if start.offline else os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = elsewhere or f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    kept, store = folder / "run.json", sha256_json([uri])  # an address may hold a password
    if kept.is_file() and (before := json.loads(kept.read_text()))["store"] == store:
        client.update_run(before["run_id"], status="RUNNING")
        return TrackedRun(client, before["run_id"])
    experiment = client.get_experiment_by_name(start.recipe)
    artifacts = None if elsewhere else (folder / "artifacts").as_uri()
    place = experiment.experiment_id if experiment else client.create_experiment(start.recipe, artifacts)
    run_id = client.create_run(place, run_name=start.run).info.run_id
    client.log_batch(run_id, params=[Param(key, value) for key, value in start.parameters.items()])
    write_atomic(kept, json.dumps({"store": store, "run_id": run_id}) + "\n")
    return TrackedRun(client, run_id)
