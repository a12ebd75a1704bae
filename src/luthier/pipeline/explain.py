"""Words for what was resolved and what became of the data."""

from __future__ import annotations

from typing import Any

from luthier.records import DataReport
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.runs import RunFolder


def explained(resolved: ResolvedRecipe) -> list[str]:
    """Every value of the resolved recipe with the reason for it, one a line."""
    values = dict(_leaves(resolved.recipe.model_dump(mode="json"), ""))
    width = max(len(f"{key} = {value}") for key, value in values.items())
    width = min(width, 60)
    return [f"{f'{key} = {value}':<{width}}  {_reason(key, value, resolved.reasons)}" for key, value in values.items()]


def _reason(key: str, value: object, reasons: dict[str, str]) -> str:
    while key:
        if key in reasons:
            return reasons[key]
        key = key.rpartition(".")[0]
    return "not set, and nothing follows from it" if value is None else "given in the recipe, or the documented default"


def _leaves(tree: Any, prefix: str) -> list[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else key)]
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        return [leaf for index, value in enumerate(tree) for leaf in _leaves(value, f"{prefix}.{index}")]
    return [(prefix, tree)]


def data_lines(report: DataReport, run: RunFolder) -> list[str]:
    """Rows in, rows out, and every reason in between."""
    lines = [f"{report.rows_in} rows in, {report.rows_out} used"]
    lines += [f"  set aside: {count} {reason.replace('_', ' ')}" for reason, count in sorted(report.dropped.items()) if count]
    lines += [f"  {name}: {split.rows} rows, {split.tokens} tokens, {split.supervised_tokens} supervised"
              for name, split in report.splits.items()]
    if report.findings:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(report.findings.items()))
        lines.append(f"  personal data ({report.findings_action}; secrets: {report.secrets_action}): {found}")
    return [*lines, f"report: {run.data_report}"]
