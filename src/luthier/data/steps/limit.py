"""At most so many rows of a split (`data.limit`), drawn by label and seed."""

from __future__ import annotations

from luthier.data.items import Verdict
from luthier.data.split import draw
from luthier.data.step import Facts, Flow, WholeStep
from luthier.errors import DataError
from luthier.records import SplitName, is_closed


class Limit(WholeStep):
    needs_names = False

    def sift(self, flow: Flow) -> Facts:
        """Raises:
        DataError: a limit is below the number of labels.
        """
        items, resolved = flow.items, flow.resolved
        limits = resolved.recipe.data.limit
        closed = is_closed(resolved.recipe.entry.task)
        learned = {item.answer for item in items if item.split == "train"}
        if closed and limits.train is not None and limits.train < len(learned):
            raise DataError(
                f"data.limit.train: {limits.train} rows cannot hold {len(learned)} labels",
                way_out=f"set it to {len(learned)} or more, or leave it out",
            )
        bounds: tuple[tuple[SplitName, int | None], ...] = (
            ("train", limits.train), ("validation", limits.validation), ("test", limits.test),
        )  # fmt: skip
        over: dict[int, Verdict] = {}
        for split, limit in bounds:
            rows = [item for item in items if item.split == split]
            if limit is None or len(rows) <= limit:
                continue
            places = [f"{item.file}:{item.line}" for item in rows]
            labels = [item.answer if closed else "" for item in rows]
            stays = draw(places, labels, limit=limit, seed=resolved.recipe.data.split.seed)
            detail = f"data.limit.{split} is {limit}"
            over |= {id(item): ("over_limit", detail) for item, stay in zip(rows, stays, strict=True) if not stay}
        flow.items = flow.ledger.sift("limit", items, [over.get(id(item)) for item in items])
        return {}


STEP = Limit
