"""Run in a process of its own: plans with a made-up method (a head) and a made-up adapter (all weights) in the tables.

Reads one JSON list of cases from standard input and writes what becomes of each to standard output.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HEAD = """
from typing import Literal
from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method
class Head(Method):
    type: Literal["head"] = "head"
    smoothing: float = 0.1
FACTS = MethodFacts(name="head", summary="made up", section=Head, tasks=("classification", "sentiment"),
    learning_rates=((float("inf"), 1e-3),), backward_factor=2.0, has_head=True)
"""
FULL = """
from luthier.spec.plugins import AdapterFacts
FACTS = AdapterFacts(name="full", summary="made up", trains_base=True, considered=True)
"""


def main() -> None:
    """The tables are extended before the recipe's sections are made of them."""
    import luthier.spec.adapters
    import luthier.spec.methods

    place = Path(tempfile.mkdtemp())
    for package, name, text in ((luthier.spec.methods, "head", HEAD), (luthier.spec.adapters, "full", FULL)):
        folder = place / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        package.__path__.append(str(folder))
    from luthier.spec.plugins import ADAPTERS, METHODS

    for table, names in ((METHODS, ("sft", "head")), (ADAPTERS, ("lora", "full"))):
        for other in set(table.names()) - set(names):  # techniques that are built do not change what is tested
            del table.entries()[other]
    json.dump([case(**one) for one in json.load(sys.stdin)], sys.stdout)


def case(
    *,
    rows: int,
    labels: int,
    known: list[dict[str, Any]] = [],  # noqa: B006
    begun: str = "",
    alone: bool = True,
    **sections: Any,
) -> dict[str, Any]:
    """What the plan makes of so many rows and labels."""
    import samples

    from luthier.pipeline.choose import choose, techniques
    from luthier.pipeline.known import Earlier
    from luthier.pipeline.start import plan_of
    from luthier.plan.measured import Known
    from luthier.spec.filler import Machine
    from luthier.spec.load import LoadedRecipe
    from luthier.spec.resolve import ResolvedRecipe, resolve

    profile = samples.profile(num_rows=rows, labels={f"l{number}": rows // labels for number in range(labels)})
    shape = samples.shape()

    def again(loaded: LoadedRecipe) -> ResolvedRecipe:
        machine = Machine(threads=1)
        return resolve(loaded, profile, shape, machine=machine, data_sha256={}, luthier_version="0")

    sections = {"objective": {}, "method": {"type": "auto"}, "train": {"num_train_epochs": 1}, **sections}
    loaded = LoadedRecipe(samples.recipe(**sections), Path("r.yaml"), "", ())
    earlier = Earlier(tuple(map(Known.model_validate, known)), begun)
    found = techniques(loaded, again, known=lambda resolved: earlier, alone=alone)
    by_rule = f"{found.resolved.recipe.adapter.type} {found.resolved.recipe.method.type}"
    plan = plan_of(found.resolved, profile, shape, found, gflops=100.0)
    if loaded.recipe.method.type == "auto" and alone:
        found = choose(found, plan)
        plan = plan_of(found.resolved, profile, shape, found, gflops=100.0)
    method = found.resolved.recipe.method.model_dump(mode="json")
    return {
        "plan": plan.model_dump(mode="json"),
        "by_rule": by_rule,
        "method": method,
        "reasons": {key: why for key, why in found.resolved.reasons.items() if key.startswith(("method", "adapter.t"))},
    }


if __name__ == "__main__":
    main()
