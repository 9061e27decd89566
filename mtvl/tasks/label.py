"""Statements about pictures with one label out of a few, scored by accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mtvl.data.formats.rows import LabelRow
from mtvl.errors import DataError
from mtvl.metrics.labels import score_labels
from mtvl.tasks.base import BaseTask
from mtvl.types import Example, Scores, Target, Visual


class Label(BaseTask):
    """SNLI-VE and its like: what the pictures say of a statement, by name. Fixed choices must hold every label."""

    def _from_row(self, row: LabelRow, visual: Visual, split: str) -> Iterable[Example]:
        choices = self.decoding.choices
        if row.label is not None and choices and row.label not in choices:
            raise DataError(
                f"expected one of 'decoding.choices' ({', '.join(choices)}), found the label {row.label!r}",
                file=row.file,
                row=row.place,
            )
        yield Example(
            uid=row.uid,
            task=self.name,
            segments=self._segments(row.statement),
            visual=visual,
            targets=() if row.label is None else (Target(row.label),),
            references={} if row.label is None else {"label": row.label},
        )

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        return score_labels(texts, {uid: example.references["label"] for uid, example in examples.items()})
