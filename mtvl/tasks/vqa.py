"""Questions with ten human answers, scored by VQA accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mtvl.data.formats.rows import QuestionRow
from mtvl.errors import DataError
from mtvl.metrics.vqa import VARIANTS, answer_shares, score_vqa, soft_targets
from mtvl.tasks.base import BaseTask
from mtvl.tasks.results import ResultFile, vqa_results
from mtvl.types import Example, Scores, Target, Visual


class VQA(BaseTask):
    """VQA v1 and v2. Targets are the soft scores; without a valid answer there is one empty target of weight 0.

    With `answer_weights: share` an answer weighs as much as the share of annotators who gave it.
    """

    has_annotators = True

    def _from_row(self, row: QuestionRow, visual: Visual, split: str) -> Iterable[Example]:
        references: dict[str, Any] = {"answers": row.answers, **row.details} if row.answers else {}
        yield Example(
            uid=row.uid,
            task=self.name,
            segments=self._segments(row.question),
            visual=visual,
            targets=_shares(row) if self.config.answer_weights == "share" else _targets(row),
            references=references,
        )

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        references = {uid: example.references for uid, example in examples.items()}
        result = score_vqa(texts, references)
        others = {f"accuracy_{v}": score_vqa(texts, references, v).metrics["accuracy"] for v in VARIANTS[1:]}
        return dataclasses.replace(result, metrics={**result.metrics, **others})

    def _result_file(self, texts: Mapping[str, str], stem: str) -> ResultFile | None:
        return vqa_results(texts, stem)


def _targets(row: QuestionRow) -> tuple[Target, ...]:
    """The row's own soft labels where it has them, otherwise min(1, 0.3 n) of its answers; () for a hidden answer."""
    if row.label is None and not row.answers:
        return ()
    if row.label is None and len(row.answers) == 1:  # no annotators to agree with: it is right as a whole
        return _shares(row)
    scores = row.label if row.label is not None else soft_targets([a["answer"] for a in row.answers])
    return tuple(Target(text, weight) for text, weight in scores.items() if weight > 0) or (Target("", 0.0),)


def _shares(row: QuestionRow) -> tuple[Target, ...]:
    """The share of the annotators that gave each answer; () for a hidden answer. *Source:* BLIP's weights."""
    if row.label is not None and not row.answers:
        raise DataError(
            "expected the annotators' answers, whose shares are the weights ('answer_weights: share'), found scores alone; use "
            "the official files, or answer_weights=accuracy", file=row.file, row=row.place,
        )  # fmt: skip
    return tuple(Target(text, weight) for text, weight in answer_shares([a["answer"] for a in row.answers]).items())
