"""The model that another one learns from: found by name, and held to the same vocabulary. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from luthier.data.across import learned_texts
from luthier.data.contract import open_tokenizer
from luthier.errors import LuthierError, ModelError, RecipeError, RunError
from luthier.models.base import import_base, is_imported
from luthier.models.shape import read_shape
from luthier.models.source import locate
from luthier.pipeline.bases import model_source
from luthier.pipeline.behind import runs_behind
from luthier.records import ModelShape, Teacher, TrainResult
from luthier.spec.load import LoadedRecipe
from luthier.spec.plugins import METHODS
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_file, sha256_json
from luthier.store.registry import registry_of
from luthier.store.runs import RunFolder, config_file, weights_sha256

KEY = "method.teacher"


def find_teacher(loaded: LoadedRecipe, *, out: Path, offline: bool, say: Callable[[str], None]) -> Teacher | None:
    """Whom the recipe's method learns from; None where it learns from rows alone.

    Args:
        loaded: of one task.
        out: folder of runs and their registry.
        offline: whether nothing may be fetched.
        say: told before something is fetched.

    Raises:
        RecipeError: there is no such run or model, or it writes no words; names the line.
    """
    named = getattr(loaded.recipe.method, "teacher", None)
    if named is None:
        return None
    try:
        run = _run_of(named, folder=loaded.folder, out=out)
        if run is not None:
            return _tuned(named, run)
        return Teacher(
            named=named, shape=read_shape(locate(named, folder=loaded.folder, revision=None, offline=offline, say=say))
        )
    except LuthierError as error:
        of_model = isinstance(error, ModelError)
        what = error.what.replace("model.name", KEY) if of_model else f"{KEY} {named!r}: {error.what}"
        way_out = f"{error.way_out}; a run is NAME@1, NAME/ID or its folder (runs in {out})"
        raise RecipeError(f"{loaded.where(KEY)}: {what}", way_out=way_out) from error


def _run_of(named: str, *, folder: Path, out: Path) -> RunFolder | None:
    """The run of that name; None where it can only be a model."""
    if "@" in named:
        version = registry_of(out).get(named)
        run = RunFolder.open(version.run, out=out)
        if _weights_sha256(run) != version.weights_sha256:
            raise RunError(
                f"its weights are no longer those of version {version.version}", way_out=f"luthier run {run.path}"
            )
        return run
    for path in (folder / Path(named).expanduser(), out / named):
        if (path / "recipe.resolved.json").is_file() or (path / "latest").is_dir():
            return RunFolder.open(str(path), out=out)
    return None


def _tuned(named: str, run: RunFolder) -> Teacher:
    """What a finished run learned.

    Raises:
        RunError: it has learned nothing yet, or a head.
    """
    parts = ResolvedRecipe.read(run.resolved).parts
    if all(METHODS.get(part.recipe.method.type).has_head for part in parts):
        raise RunError(
            f"it answers by a classification head ({parts[0].recipe.method.type}), and says nothing of words",
            way_out="name a run of method sft",
        )
    shape = ModelShape.read(run.shape)
    model_source(shape)  # it must still be there
    return Teacher(
        named=named,
        shape=shape,
        tuned=str(run.tuned.resolve()),
        tuned_sha256=_weights_sha256(run),
        config_sha256=sha256_file(config_file(run.tuned)),
    )


def _weights_sha256(run: RunFolder) -> str:
    """Of what the run learned, as its files are.

    Raises:
        RunError: training has not ended, or the weights were changed since.
    """
    if not run.train_result.is_file():
        raise RunError(f"{run.path} has not finished training", way_out=f"luthier train {run.path}")
    said, found = TrainResult.read(run.train_result).weights_sha256, weights_sha256(run.tuned)
    if said != found:
        raise RunError(f"the weights in {run.tuned} were changed since training", way_out=f"luthier train {run.path}")
    return found


def refuse_short_teacher(resolved: ResolvedRecipe) -> None:
    """The teacher reads what the model reads.

    Raises:
        RecipeError: rows may be longer than it was trained for.
    """
    teacher, length = resolved.teacher, resolved.recipe.train.max_length or 0
    if teacher is not None and length > teacher.shape.max_positions:
        raise RecipeError(
            f"train.max_length {length} is more than the {teacher.shape.max_positions} positions of the teacher "
            f"{teacher.named!r}",
            way_out=f"set it to {teacher.shape.max_positions} or less, or choose another teacher",
        )


def refuse_other_vocabulary(base: ModelShape, teacher: Teacher) -> None:
    """What the teacher says of a token is read as said of the same token of the model.

    Raises:
        RecipeError: an id stands for one token here and for another there.
    """
    if base.sha256 == teacher.shape.sha256:
        return
    own, other = (vocabulary_sha256(import_base(model_source(one))) for one in (base, teacher.shape))
    if own != other:
        raise RecipeError(
            f"{KEY} {teacher.named!r} has another vocabulary than the model: the tokens of {base.name!r} have the hash "
            f"{own[:12]}, those of {teacher.shape.name!r} {other[:12]}",
            way_out="choose a teacher whose tokenizer has the same tokens, mostly one of the same family",
        )


def refuse_other_vocabulary_if_seen(base: ModelShape, teacher: Teacher | None) -> None:
    """The same before anything is written, where neither base has to be converted first."""
    if teacher is not None and all(is_imported(model_source(one)) for one in (base, teacher.shape)):
        refuse_other_vocabulary(base, teacher)


def vocabulary_sha256(folder: Path) -> str:
    """Hash over the tokens of a base folder, special ones included, in the order of their ids.

    How a text is cut into tokens does not count, for models are given ids.
    """
    known = open_tokenizer(folder / "tokenizer.json").get_vocab(with_added_tokens=True)
    return sha256_json(sorted((place, token) for token, place in known.items()))


def taught_texts(teacher: Teacher) -> frozenset[str]:
    """What the run that made the teacher learned from, and every run behind it; nothing is known of a model that no run
    made.

    Raises:
        RecipeError: the rows of that run are gone.
    """
    if not teacher.tuned:
        return frozenset()
    folders = []
    for run in runs_behind([RunFolder(Path(teacher.tuned).parent.parent)]).values():
        for task in run.tasks(ResolvedRecipe.read(run.resolved).names):
            folders.append(task.data)
            if not (task.data / "train.arrow").is_file():
                raise RecipeError(
                    f"{KEY} {teacher.named!r}: {task.data}/train.arrow is gone, so which test rows it learned is not "
                    "known",
                    way_out=f"make it again: luthier prepare {run.path}",
                )
    return frozenset[str]().union(*map(learned_texts, folders))
