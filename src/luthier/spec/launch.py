"""How the processes of training are started, as a recipe says it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from luthier.spec.section import Section


class Launch(Section):
    """How the processes of training are started; no part of a run's identity, for it changes no more than rounding."""

    type: Literal["local", "torchrun"] | None = Field(
        None, description="'local': one process; 'torchrun': its elastic agent starts them."
    )
    nproc_per_node: int = Field(1, gt=0, le=1024, description="Processes on each machine.")
    nnodes: int = Field(1, gt=0, le=1024, description="Machines.")
    rdzv_endpoint: str | None = Field(
        None, pattern=r"^[^\s:/@]+:\d{1,5}$", description="HOST:PORT of the first machine, where all of them meet."
    )
    max_restarts: int = Field(3, ge=0, description="How often processes that died are started again.")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="'ddp': each process holds the whole base; 'fsdp': its layers are divided between them."
    )

    @model_validator(mode="after")
    def _machines_can_meet(self) -> Launch:
        if self.rdzv_endpoint is not None and not 0 < int(self.rdzv_endpoint.rpartition(":")[2]) < 2**16:
            raise ValueError("rdzv_endpoint ends with a port from 1 to 65535")
        if self.nnodes > 1 and self.rdzv_endpoint is None:
            raise ValueError("nnodes above 1 needs rdzv_endpoint, e.g. 'first-machine:29400', where they meet")
        if self.nnodes == 1 and self.rdzv_endpoint is not None:
            raise ValueError("rdzv_endpoint is where several machines meet; set nnodes, or leave it out")
        if self.type == "local" and self.nproc_per_node * self.nnodes > 1:
            raise ValueError("type 'local' is one process; write 'torchrun', or leave it out")
        return self
