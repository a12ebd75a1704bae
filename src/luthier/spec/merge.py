"""Trained runs that are merged into one model, instead of training one: `merge` of the recipe.

What a run learned is its task vector, the tuned weights less those of the base (Ilharco et al. 2023, arXiv 2212.04089,
section 2). Methods differ in how task vectors are added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from luthier.errors import RecipeError
from luthier.records import Record
from luthier.spec.section import Section

if TYPE_CHECKING:
    from luthier.spec.load import LoadedRecipe

Into = Literal["adapter", "weights"]
MergeMethod = Literal["linear", "ties", "dare_linear", "dare_ties", "greedy"]


@dataclass(frozen=True)
class MergeFacts:
    """How task vectors are added up."""

    summary: str
    usual_density: float | None = None
    """Share of a task vector's values that is kept; None where all are."""
    why_density: str = ""
    draws: bool = False
    """Whether what is kept is drawn, so that a seed matters."""
    averages: bool = True
    """Whether weights are those of a mean: 1/n each where they are open, 1 each otherwise."""
    keeps_rank: bool = False
    """Whether a sum of changes of low rank is one, so that an adapter holds it exactly."""
    chooses: bool = False
    """Whether it says itself which runs count."""


MERGES: dict[str, MergeFacts] = {
    "linear": MergeFacts("the weighted sum of what the runs learned; their mean is a uniform soup", keeps_rank=True),
    "ties": MergeFacts(
        "small values are cut, signs elected, and those that agree averaged",
        usual_density=0.2,
        why_density="what the paper keeps",
        averages=False,
    ),
    "dare_linear": MergeFacts(
        "values are dropped at random, the others scaled up, then summed",
        usual_density=0.5,
        why_density="a common middle",
        draws=True,
    ),
    "dare_ties": MergeFacts(
        "values are dropped at random, the others scaled up, then as ties without its cut",
        usual_density=0.5,
        why_density="a common middle",
        draws=True,
        averages=False,
    ),
    "greedy": MergeFacts(
        "the mean of the runs that make it no worse on the validation rows, the best first: a greedy soup",
        keeps_rank=True,
        chooses=True,
    ),
}
"""Name -> facts. Their sources stand with the computation, luthier.compress.merge.arithmetic."""


class Merge(Section):
    runs: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="Run folders, names of runs, or NAME@ALIAS of the registry."
    )
    method: MergeMethod = "linear"
    weights: tuple[float, ...] | None = Field(
        None, min_length=1, description="What each run's task vector is multiplied by, in the order of `runs`."
    )
    density: float | None = Field(None, gt=0, le=1, description="Share of a task vector's values that is kept.")
    into: Into | None = Field(None, description="'adapter' of low rank beside the base, or whole 'weights'.")
    rank: int | None = Field(None, gt=0, le=512, description="Of the adapter; fewer than the sum is cut by SVD.")
    seed: int | None = Field(None, ge=0, lt=2**31, description="Of the values that DARE drops.")

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Merge:
        facts = MERGES[self.method]
        idle = {
            "density": self.density is not None and facts.usual_density is None,
            "seed": self.seed is not None and not facts.draws,
            "weights": self.weights is not None and facts.chooses,
        }
        for key, is_idle in idle.items():
            if is_idle:
                fitting = [name for name, other in MERGES.items() if _uses(other, key)]
                raise ValueError(f"{key} has no effect with method {self.method}; it is for {', '.join(fitting)}")
        if self.rank is not None and self.into == "weights":
            raise ValueError("rank is that of an adapter, and into is weights; keep one of them")
        return self

    @model_validator(mode="after")
    def _names_each_run_once(self) -> Merge:
        if twice := sorted({run for run in self.runs if self.runs.count(run) > 1}):
            raise ValueError(f"runs: {twice[0]!r} stands twice; name it once and give it the double weight")
        if self.method == "greedy" and len(self.runs) < 2:
            raise ValueError("runs: greedy chooses among runs, and one is named")
        if self.weights is not None and len(self.weights) != len(self.runs):
            raise ValueError(f"weights are {len(self.weights)} numbers for {len(self.runs)} runs; give one for each")
        if self.weights is not None and not all(abs(one) < float("inf") for one in self.weights):
            raise ValueError("weights are finite numbers")
        if self.weights is not None and not any(self.weights):
            raise ValueError("weights are all 0, which merges nothing; leave them out for the usual ones")
        return self


def _uses(facts: MergeFacts, key: str) -> bool:
    return {"density": facts.usual_density is not None, "seed": facts.draws, "weights": not facts.chooses}[key]


class Parent(Record):
    """A trained run that is merged, as it was found."""

    run: str = Field(description="NAME/ID.")
    path: str
    kind: Literal["adapter", "model"] = Field(description="The folder below train/ that holds what it learned.")
    adapter: dict[str, Any] = Field(description="Section of its resolved recipe.")
    rank: int | None = Field(description="Of a plain LoRA; None where its change is not of low rank.")
    why_no_rank: str = Field(description="'' for a plain LoRA.")
    methods: dict[str, dict[str, Any]] = Field(description="Task -> section of the method that it learned it by.")
    tasks: dict[str, str] = Field(description="Task -> type of work.")
    weights_sha256: str
    config_sha256: str = Field(description="Of adapter_config.json or config.json, which says how weights are read.")
    recipe_sha256: str
    data_sha256: str = Field(description="Hash over its shards and contracts.")
    parents: tuple[Parent, ...] = Field((), description="Where it was merged itself.")

    def everyone(self) -> tuple[Parent, ...]:
        """It and all that it was merged from."""
        return (self, *(one for parent in self.parents for one in parent.everyone()))

    def identity(self) -> dict[str, Any]:
        """All but where it is."""
        found = self.model_dump(mode="json", exclude={"path", "parents"})
        return {**found, "parents": [parent.identity() for parent in self.parents]}


def why_no_rank(config: Mapping[str, Any]) -> str:
    """Why what an adapter_config.json describes is not s B A beside frozen weights and nothing more; '' where it is."""
    if config.get("peft_type") != "LORA":
        return f"its type is {config.get('peft_type')}"
    if config.get("use_dora"):
        return "DoRA changes the sizes of weights too"
    if config.get("bias", "none") != "none":
        return "biases of the base learned too"
    if whole := sorted(set(config.get("modules_to_save") or ()) - {"score"}):
        return f"{whole[0]} learned whole"
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return "its layers have different ranks"
    return ""


KEPT_SETTINGS = ("max_length", "seed", "threads", "device")
"""Of `train`, what has an effect where nothing learns."""


def refuse_learning(loaded: LoadedRecipe) -> None:
    """Where runs are merged nothing learns, and what says how would change nothing.

    Raises:
        RecipeError: such a key is given.
    """
    recipe = loaded.recipe
    if recipe.merge is None:
        return
    launch, data = recipe.launch, recipe.data
    given = {f"train.{key}": True for key in recipe.train.model_fields_set if key not in KEPT_SETTINGS}
    given |= {
        "adapter": "adapter" in recipe.model_fields_set,
        "multi_task": recipe.multi_task is not None,
        "launch.nproc_per_node": launch.nproc_per_node * launch.nnodes > 1 or launch.type == "torchrun",
        "data.augment": data.augment is not None or any(entry.augment is not None for entry in data.train),
        "data.canaries": data.canaries is not None,
        "data.teacher": data.teacher is not None,
        "method.replay": getattr(recipe.method, "replay", None) is not None,
        "method.teacher": getattr(recipe.method, "teacher", None) is not None,
    }
    given |= {f"data.train.{n}.method": hasattr(entry.method, "teacher") for n, entry in enumerate(data.train)}
    given |= {f"data.train.{place}.weight": entry.weight != 1.0 for place, entry in enumerate(data.train)}
    for key, is_given in given.items():
        if is_given:
            raise RecipeError(
                f"{loaded.where(key)}: {key} says how to learn, and with merge nothing learns", way_out="leave it out"
            )


def rank_of(parents: Sequence[Parent]) -> int:
    """Of the exact weighted sum of parents that all have a rank."""
    return sum(parent.rank or 0 for parent in parents)
