"""Questions with one answer and its program, scored by the official GQA measures.

A kind of its own: of VQA it shares the look of the input, but neither targets, nor references, nor measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mtvl.data.formats.rows import QuestionRow
from mtvl.metrics.gqa import score_gqa
from mtvl.tasks.base import BaseTask
from mtvl.tasks.results import ResultFile, gqa_results
from mtvl.types import Example, Scores, Target, Visual


class GQA(BaseTask):
    """GQA. Where the *all* questions are evaluated, the unbalanced ones serve only consistency."""

    def _from_row(self, row: QuestionRow, visual: Visual, split: str) -> Iterable[Example]:
        answer = row.answers[0]["answer"] if row.answers else None
        references = {} if answer is None else {**row.details, "question": row.question, "answer": answer}
        yield Example(
            uid=row.uid,
            task=self.name,
            segments=self._segments(row.question),
            visual=visual,
            targets=() if answer is None else (Target(answer),),
            references=references,
        )

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        references = {uid: _complete(example.references) for uid, example in examples.items()}
        balanced = {uid: r for uid, r in references.items() if r["isBalanced"]}
        if balanced and not all(_has_types(r) for r in balanced.values()):
            return _plain_accuracy(texts, balanced)
        choices = {uid: r["choices"] for uid, r in balanced.items() if "choices" in r}
        result = score_gqa(texts, references, choices=choices if len(choices) == len(balanced) else None)
        # A mean over no question, or a distance between no groups, is no 0.
        forms = {"open" if r["types"]["structural"] == "query" else "binary" for r in balanced.values()}
        empty = {"open", "binary"} - forms
        if all(r["groups"]["global"] is None for r in balanced.values()):
            empty.add("distribution")
        return dataclasses.replace(result, metrics={k: v for k, v in result.metrics.items() if k not in empty})

    def _result_file(self, texts: Mapping[str, str], stem: str) -> ResultFile | None:
        return gqa_results(texts, stem)


def _complete(reference: Mapping[str, Any]) -> dict[str, Any]:
    """The official fields with neutral values where a copy leaves them out: no program, no group."""
    types = {key: value for key, value in (reference.get("types") or {}).items() if value is not None}
    return {
        **reference,
        "types": {"detailed": "", **types},
        "groups": {"global": None, **(reference.get("groups") or {})},
        "semantic": reference.get("semantic") or [],
        "isBalanced": reference.get("isBalanced", True),
    }


def _has_types(reference: Mapping[str, Any]) -> bool:
    return all(isinstance(reference["types"].get(key), str) for key in ("structural", "semantic"))


def _plain_accuracy(texts: Mapping[str, str], balanced: Mapping[str, Mapping[str, Any]]) -> Scores:
    """Exact match alone: the handed-around JSON has no types, so binary, open and the rest cannot be told."""
    per_item = {uid: 100.0 * (texts[uid] == reference["answer"]) for uid, reference in balanced.items()}
    return Scores("accuracy", {"accuracy": sum(per_item.values()) / len(per_item)}, per_item)
