"""An accelerator that is full is told apart from everything else, and what the events call memory is this process's."""

from __future__ import annotations

import pytest
import torch
from test_train_loop import SETTINGS

from luthier.errors import OutOfMemory
from luthier.train.memory import device_peak_gib, memory_errors, peak_memory_gib


@pytest.mark.parametrize(
    ("again", "way_out"),
    [
        (False, "lower train.micro_batch_tokens, or set train.gradient_checkpointing: true: the result stays the same"),
        (True, "lower train.micro_batch_tokens: the result stays the same"),
    ],
)
def test_a_full_accelerator_is_said_with_what_would_help(again: bool, way_out: str) -> None:
    settings = SETTINGS.model_copy(update={"gradient_checkpointing": again, "micro_batch_tokens": 4096})
    with (
        pytest.raises(
            OutOfMemory, match=r"the accelerator is full with train\.micro_batch_tokens 4096 \(CUDA"
        ) as caught,
        memory_errors(settings),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines")
    assert (caught.value.way_out, caught.value.exit_code) == (way_out, 6)
    assert "more lines" not in str(caught.value)


def test_memory_that_the_machine_does_not_have_is_said_too() -> None:
    with pytest.raises(OutOfMemory, match=r"the memory is full with train\.micro_batch"), memory_errors(SETTINGS):
        torch.empty(2**56)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(SETTINGS):
        raise RuntimeError("shapes do not fit")


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="an accelerator is at work in this process")
def test_without_an_accelerator_memory_is_that_of_the_process() -> None:
    assert device_peak_gib() == peak_memory_gib() > 0.05
