"""True or false statements about pictures, scored by accuracy and consistency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mtvl.data.formats.rows import StatementRow
from mtvl.metrics.nlvr2 import score_nlvr2
from mtvl.tasks.base import BaseTask
from mtvl.tasks.results import ResultFile, nlvr2_results
from mtvl.types import Example, Scores, Target, Visual


class Statement(BaseTask):
    """NLVR2 and its like: the pictures of a row in order, the answer "true" or "false"."""

    is_prose = True

    def _from_row(self, row: StatementRow, visual: Visual, split: str) -> Iterable[Example]:
        is_known = row.label is not None
        yield Example(
            uid=row.uid,
            task=self.name,
            segments=self._segments(row.statement),
            visual=visual,
            targets=(Target("true" if row.label else "false"),) if is_known else (),
            references={"identifier": row.uid, "label": str(row.label)} if is_known else {},
        )

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        return score_nlvr2(texts, {uid: example.references for uid, example in examples.items()})

    def _result_file(self, texts: Mapping[str, str], stem: str) -> ResultFile | None:
        return nlvr2_results(texts, stem)
