"""Where the base models of a run are, once they have been found."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import RecipeError
from luthier.models.source import ModelSource, locate, weights_sha256
from luthier.records import ModelShape


def model_source(shape: ModelShape) -> ModelSource:
    """Where the base of a run is; what was located once is not searched for again, but a bundled model that stands
    elsewhere on this machine than on that where the run was made.

    Raises:
        RecipeError: it is no longer there, or is another one than the run was made with.
    """
    path = Path(shape.path)
    if shape.kind == "bundled" and not path.exists():
        path = locate(shape.name, folder=path.parent, revision=None, offline=True, say=lambda line: None).path
    if not path.exists():
        raise RecipeError(
            f"the base model {shape.name!r} is no longer at {path}", way_out="put it there, or run the recipe again"
        )
    source = ModelSource(shape.name, shape.kind, path, shape.license)
    if (found := weights_sha256(source)) != shape.sha256:
        raise RecipeError(
            f"the base model at {path} has changed since this run was made: its hash was "
            f"{shape.sha256[:12]} and is {found[:12]}",
            way_out="run the recipe again, which makes a new run",
        )
    return source
