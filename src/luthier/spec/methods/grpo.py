"""Group relative policy optimisation: of several answers that the model writes, those gain that are worth more."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class Grpo(Method):
    type: Literal["grpo"] = "grpo"
    num_generations: int = Field(8, ge=2, le=256, description="Answers that are written to each prompt of a step.")
    max_completion_length: int | None = Field(
        None, gt=0, description="Of an answer, in tokens; None is what an answer may take when it is asked for."
    )
    beta: float = Field(0.0, ge=0, description="How strongly the model is held to the base; 0: not at all.")
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = Field(
        "dapo", description="What a token counts: in the step alike; in its answer; of the longest answer."
    )
    scale_rewards: Literal["group", "none"] = Field(
        "group", description="'group': by the spread of a prompt's answers; 'none': as they are."
    )

    @property
    def answers(self) -> int:
        return self.num_generations

    @property
    def answer_tokens(self) -> int | None:
        return self.max_completion_length

    @property
    def is_held(self) -> bool:
        return self.beta > 0


FACTS = MethodFacts(
    name="grpo",
    summary="answers of its own, by what verifies them (GRPO)",
    section=Grpo,
    tasks=("translation", "generation", "extraction"),
    # A tenth of those of sft: what is learned is drawn anew in each step. Tried on a tiny model and on 135 M alone.
    learning_rates=((0.5, 1e-4), (2.0, 5e-5), (float("inf"), 2e-5)),
    backward_factor=2.0,
    by_rewards=True,
)
