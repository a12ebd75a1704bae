"""What was measured, for plans to come: of this machine, and of techniques on data like this."""

from __future__ import annotations

from pydantic import Field

from luthier.records import Interval, Record


class Tried(Record):
    """Steps of a run and rows asked, timed on this machine; what a child process tells the plan."""

    steps: int = Field(description="That were timed.")
    step_seconds: float
    step_computed: int = Field(description="Tokens computed in these steps.")
    step_supervised: int = Field(description="Tokens supervised in these steps.")
    all_computed: int = Field(description="Of the whole training, counted from the rows as they will be batched.")
    all_supervised: int
    peak_memory_gib: float = Field(description="Of the process: the largest micro-batch and the optimizer.")
    asked: tuple[int, ...] = Field(description="Of each task the rows of the validation split that were asked.")
    ask_seconds: float
    work_seconds: float = Field(description="Of all of this; the rest of the child's time was its start.")


class Probed(Record):
    """What less than a minute of the real work took on this machine: `luthier plan --probe`."""

    key: str = Field(description="Hash of what was tried: base, data, method, adapter, settings of training.")
    machine: str = Field(description="Processor and threads.")
    model_sha256: str
    technique: str
    train_gflops: float = Field(description="Counted operations of the timed steps a second, optimizer included.")
    score_gflops: float = Field(description="Of asking the untuned model.")
    greedy_gflops: float = Field(description="Of free text, token by token.")
    start_seconds: float = Field(description="From the start of the process until the model was in memory.")
    steps: int = Field(description="That were timed.")
    asked: int = Field(description="Rows that were asked.")
    computed_tokens: int = Field(description="Of the whole training, counted from the rows as they will be batched.")
    supervised_tokens: int = Field(description="Of the whole training, with logits of the vocabulary.")
    peak_memory_gib: float = Field(description="Of the process: the largest micro-batch and the optimizer.")


class Known(Record):
    """What was measured of a technique on data like this."""

    technique: str
    metrics: dict[str, Interval]
    source: str
    data: str
