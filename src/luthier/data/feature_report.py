"""What the features made of the rows that went by: counts, and first values for people to look at."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.data.inputs import as_text
from luthier.data.privacy.profiles import Detector
from luthier.data_report import FeatureExample, FeatureReport, RowFate
from luthier.records import Feature

_EXAMPLES, _LOOKED_AT = 4, 200
_SHOWN_CHARS = 400


class FeatureTally:
    """Looks at each row once it has its features."""

    def __init__(self, features: tuple[Feature, ...], detector: Detector) -> None:
        self.rows = 0
        self._detector = detector
        self._features = features
        self._empty = dict.fromkeys((feature.name for feature in features), 0)
        self._examples: dict[str, list[FeatureExample]] = {feature.name: [] for feature in features}

    def add(self, line: int, values: Mapping[str, object]) -> None:
        """Count a row."""
        self.rows += 1
        for feature in self._features:
            self._empty[feature.name] += values.get(feature.name) is None
            if self.rows <= _LOOKED_AT:
                self._show(feature, line, values)

    def _show(self, feature: Feature, line: int, values: Mapping[str, object]) -> None:
        """Only values that were not shown yet. An address may be made of cells that are none by themselves."""
        shown = self._examples[feature.name]
        cells = {name: as_text(values.get(name)) for name in feature.uses}
        value = as_text(values.get(feature.name))
        short = value[:_SHOWN_CHARS]
        if len(shown) == _EXAMPLES or any(one.value == short for one in shown):
            return
        if not any(self._detector.find(text) for text in (value, " ".join(cells.values()))):
            cut = {name: text[:_SHOWN_CHARS] for name, text in cells.items()}
            shown.append(FeatureExample(line=line, cells=cut, value=short))

    def records(self, failures: list[RowFate]) -> tuple[FeatureReport, ...]:
        """Of each feature; `failures` are the rows that one of them failed for."""
        return tuple(
            FeatureReport(
                name=feature.name,
                sql=feature.sql,
                type=feature.type,
                rows=self.rows,
                empty=self._empty[feature.name],
                failed=sum(fate.detail.startswith(f"data.features.{feature.name}: ") for fate in failures),
                examples=tuple(self._examples[feature.name]),
            )
            for feature in self._features
        )
