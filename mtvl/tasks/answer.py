"""Open-ended questions on a picture or a video with one or more right answers, scored by exact match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mtvl.data.formats.rows import QuestionRow
from mtvl.metrics.answers import score_answers
from mtvl.tasks.base import BaseTask
from mtvl.types import Example, Scores, Segment, Target, Visual


class Answer(BaseTask):
    """MSRVTT-QA and one's own questions. In contrast to VQA an answer needs no ten annotators: each counts in full."""

    def _from_row(self, row: QuestionRow, visual: Visual, split: str) -> Iterable[Example]:
        answers = tuple(dict.fromkeys(str(answer["answer"]) for answer in row.answers))
        if row.clip is None:
            segments = self._segments(row.question)
        else:
            segments = self._video_segments(row.clip, Segment("question", f" [Q] {row.question}"))
        yield Example(
            uid=row.uid,
            task=self.name,
            segments=segments,
            visual=visual,
            targets=tuple(Target(answer) for answer in answers),
            references={"answers": answers} if answers else {},
        )

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        return score_answers(texts, {uid: example.references["answers"] for uid, example in examples.items()})
