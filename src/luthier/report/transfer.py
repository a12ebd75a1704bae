"""The transfer matrix as a page: what each training together did to each of its tasks."""

from __future__ import annotations

from luthier.eval_records import TransferCell, TransferMatrix
from luthier.report.evidence import number, shown_gap, title
from luthier.report.html import environment


def render_transfer(matrix: TransferMatrix) -> str:
    """A row a training, a column a task; green where the interval shows a gain, red where it shows a loss."""
    cells = {(cell.together, cell.task): cell for cell in matrix.cells}
    alone = {cell.task: f"{number(cell.alone)} {title(cell.metric)}" for cell in matrix.cells}
    rows = [
        (" + ".join(together), [_shown(cells.get((together, task))) for task in matrix.tasks])
        for together in dict.fromkeys(cell.together for cell in matrix.cells)
    ]
    return (
        environment()
        .get_template("transfer.html.j2")
        .render(matrix=matrix, rows=rows, alone=[alone[task] for task in matrix.tasks])
    )


def _shown(cell: TransferCell | None) -> tuple[str, str, str]:
    """(kind, difference, condition) of a cell; a task that was not learned has none."""
    if cell is None:
        return "", "", ""
    kind, value, ends = shown_gap(cell.difference, cell.metric)
    p_value = f", p = {cell.p_value:.2g}" if cell.p_value == cell.p_value else ""
    return kind, value, ends + p_value
