"""Questions on a picture or video with several answers to choose from, scored by accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from mtvl.config import EvaluateConfig
from mtvl.data.formats.rows import ChoiceRow
from mtvl.errors import ConfigError, DataError
from mtvl.metrics.qa import score_qa
from mtvl.tasks.base import BaseTask, TaskConfig, subset_of
from mtvl.tasks.results import ResultFile, value_qa_results
from mtvl.types import Example, Scores, Segment, Target, Visual

_ENDS = (".", "?", "!")


class Choice(BaseTask):
    """TVQA, How2QA, one's own sets and their like. The answers are called as in `decoding.choices` ("a0", "a1", ...).

    With `decoding.mode: rank` the model learns the words of the right answer and the answers are ranked by their
    likelihood. With `choose` and `generate` it learns the name of the right answer; the names are compared by their
    scores, or an answer is right when the generated text is its name. *Source:* VL-Adapter generates.
    """

    def __init__(self, name: str, config: TaskConfig, root: Path, evaluate: EvaluateConfig) -> None:
        super().__init__(name, config, root, evaluate)
        if len(set(self.decoding.choices)) < 2:
            raise ConfigError(
                f"'{name}': this kind expects 'decoding.choices' with a name for each answer, "
                f"found {list(self.decoding.choices)}"
            )

    def _from_row(self, row: ChoiceRow, visual: Visual, split: str) -> Iterable[Example]:
        names = self.decoding.choices
        if len(row.choices) != len(names):
            raise DataError(
                f"expected {len(names)} answers to choose from ({', '.join(names)}), found {len(row.choices)}",
                file=row.file,
                row=row.place,
            )
        right = None if row.answer is None else names[row.answer]
        is_ranked = self.decoding.mode == "rank"
        targets = row.choices if is_ranked else names
        listed = (f" {name}: {_sentence(text)}" for name, text in zip(names, row.choices, strict=True))
        choices = Segment("choices", " [Choices]" + "".join(listed))
        if row.clip is None:
            segments = (*self._segments(row.question), choices)
        else:
            segments = self._video_segments(row.clip, Segment("question", f" [Q] {row.question}"), choices)
        yield Example(
            uid=row.uid,
            task=self.name,
            segments=segments,
            visual=visual,
            targets=() if row.answer is None else (Target(targets[row.answer]),),
            references={} if right is None else _references(row, right),
            choices=tuple(row.choices) if is_ranked else (),
        )

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        found = {uid: example.references for uid, example in examples.items()}
        answers = {uid: reference["answer"] for uid, reference in found.items()}
        result = score_qa(texts, answers)
        metrics = dict(result.metrics)
        for key in ("group", "subset"):
            parts = {uid: reference[key] for uid, reference in found.items() if key in reference}
            if len(parts) == len(found):
                per_group = score_qa(texts, answers, parts).details["per_group"]
                metrics |= {f"accuracy/{n}": 100 * c["correct"] / c["total"] for n, c in sorted(per_group.items())}
        return dataclasses.replace(result, metrics=metrics)

    def _result_file(self, texts: Mapping[str, str], stem: str) -> ResultFile | None:
        return value_qa_results(texts, self.decoding.choices, stem)


def _references(row: ChoiceRow, right: str) -> dict[str, str]:
    """The name of the right answer, and what scores are broken down by."""
    references = {"answer": right}
    if row.group:
        references["group"] = row.group
    return references | subset_of(row)


def _sentence(text: str) -> str:
    """The answer with a full stop, so that the names stand apart; How2QA's answers bring theirs along."""
    return text if text.endswith(_ENDS) else f"{text}."
