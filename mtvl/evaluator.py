"""Predicting a split on all ranks and scoring it once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from mtvl import dist
from mtvl.errors import ConfigError, EngineError, MtvlError
from mtvl.model import Model
from mtvl.retrieving import need_heads, needs_whole_weights, retrieve
from mtvl.types import Batch, Decoding, Example, Prediction, Scores, Task, Tokenizer, wrap_target

KEPT = 5  # scores of a ranked list that go into a prediction
Run = Callable[[Batch, Callable[[], None]], None]


class Evaluator:
    """Shards by uid, gathers, asserts that the uid set equals the split, scores once on every rank's same input.

    `run(batch, action)` is given where weights are partitioned over the ranks (ZeRO-3, `Engine.run`). All ranks then
    answer the same number of batches in the same number of passes: one that has fewer, or shorter answers, repeats itself
    and drops what comes out.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, device: torch.device | str = "cpu", run: Run | None = None
    ) -> None:
        self.model, self.tokenizer, self.device, self._run = model, tokenizer, device, run
        self._lists: dict[str, Decoding] = {}  # decoding of tasks that rank a list, with the list
        self._wrapped: dict[tuple[str, ...], list[list[int]]] = {}

    def predict_batch(self, task: Task, batch: Batch) -> list[Prediction]:
        """Answers to one batch: generated text, or the best of the task's choices with their scores."""
        self.model.set_task(task.name)
        batch = batch.to(self.device)
        decoding = self._decoding_of(task)
        if self._run is None:
            return self._answers(decoding, batch)
        answers: list[Prediction] = []
        self._run(batch, lambda: answers.extend(self._answers(decoding, batch)))
        return answers

    def predict_mixed_batch(self, tasks: Mapping[str, Task], batch: Batch) -> list[tuple[str, Prediction]]:
        """(task, answer) of every row of a batch that mixes tasks by example.

        All rows are encoded together, and those that are decoded alike are decoded together, each by its own task's parts.
        """
        batch = batch.to(self.device)
        memory = self.model.encode(batch)
        answers: dict[int, tuple[str, Prediction]] = {}
        first, rows_of = 0, {}
        for number, part in enumerate(batch.parts):
            rows_of[number] = range(first, first := first + len(part.uids))
        decodings = {name: self._decoding_of(tasks[name]) for name in dict.fromkeys(p.task for p in batch.parts)}
        for decoding, numbers in _decoded_alike(decodings, batch).items():
            rows = [row for number in numbers for row in rows_of[number]]
            parts = [batch.parts[number] for number in numbers]
            names = [part.task for part in parts for _ in part.uids]
            self.model.set_rows(names)
            # Of several parts only the uids are asked for here: rows to be ranked come alone, with their own choices.
            some = parts[0] if len(parts) == 1 else replace(batch, uids=tuple(batch.uids[row] for row in rows))
            found = self._answers(decoding[0], some, memory.select(rows))
            answers.update(zip(rows, zip(names, found, strict=True), strict=True))
        return [answers[row] for row in range(len(batch.uids))]

    def _answers(self, decoding: Decoding, batch: Batch, memory: Any = None) -> list[Prediction]:
        """Answers to the rows of `batch`, whose tasks are set; `memory` where it has been encoded before."""
        if decoding.mode == "generate":
            ids = self.model.generate(batch, decoding, memory).tolist()
            return [Prediction(uid, self.tokenizer.decode(row)) for uid, row in zip(batch.uids, ids, strict=True)]
        if decoding.mode == "retrieve":
            raise ConfigError("a retrieval task answers over a whole split, not for one batch; evaluate it")
        if decoding.mode == "rank_list":
            index, scores = self.model.rank_list(batch, self._choices_of(decoding), decoding, memory)
            return [
                _best_listed(uid, decoding.choices, *row)
                for uid, *row in zip(batch.uids, index.tolist(), scores.tolist(), strict=True)
            ]
        if decoding.mode == "rank":
            scores = self.model.rank(batch, memory)
        else:
            scores = self.model.choose(batch, self._choices_of(decoding), memory)
        return [_best(uid, decoding.choices, row) for uid, row in zip(batch.uids, scores.tolist(), strict=True)]

    def _decoding_of(self, task: Task) -> Decoding:
        """The task's decoding, with the list of answers where it ranks one; ConfigError where the backbone has a list."""
        if task.decoding.mode != "rank_list":
            return task.decoding
        if task.name not in self._lists:
            if getattr(self.model.backbone, "answers", None) is not None:
                raise ConfigError(
                    f"task '{task.name}' ranks a list of answers by their words, and this backbone chooses from a list of its "
                    f"own; set task.{task.name}.decoding.mode=generate"
                )
            self._lists[task.name] = replace(task.decoding, choices=task.listed_answers())
        return self._lists[task.name]

    def _choices_of(self, decoding: Decoding) -> list[list[int]]:
        """Wrapped ids of the choices; of a list of thousands they are made once."""
        if decoding.choices not in self._wrapped:
            encode, tokenizer = self.tokenizer.encode, self.tokenizer
            self._wrapped[decoding.choices] = [wrap_target(tokenizer, encode(text)) for text in decoding.choices]
        return self._wrapped[decoding.choices]

    def predict(
        self, task: Task, examples: Sequence[Example], batches: Iterable[Batch],
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:  # fmt: skip
        """All ranks' predictions in the order of `examples`; EngineError unless each uid came exactly once."""
        own: list[Prediction] = []
        with self._evaluating():
            for batch, counts in ((b, True) for b in batches) if self._run is None else _as_many_on_all_ranks(batches):
                answers = self.predict_batch(task, batch)
                own += answers if counts else []
                if progress:
                    progress(len(own))
        return _gathered(task.name, own, examples)

    def predict_mixed(
        self, tasks: Mapping[str, Task], examples: Mapping[str, Sequence[Example]], batches: Iterable[Batch],
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, list[Prediction]]:  # fmt: skip
        """The same for all tasks at once, from batches that mix them by example (`mtvl.data.mixed`).

        EngineError where weights are partitioned: ranks with other tasks in a batch make other passes.
        """
        if self._run is not None:
            raise EngineError("batches that mix tasks cannot be answered under ZeRO-3; set evaluate.mixed=false")
        own: dict[str, list[Prediction]] = {name: [] for name in examples}
        with self._evaluating():
            for batch in batches:
                for name, prediction in self.predict_mixed_batch(tasks, batch):
                    own[name].append(prediction)
                if progress:
                    progress(sum(map(len, own.values())))
        return {name: _gathered(name, own[name], rows) for name, rows in examples.items()}

    def retrieve(
        self, task: Task, examples: Sequence[Example], collator: Any, batch: int,
        say: Callable[[str], None] | None = None, beat: Callable[[], object] = lambda: None,
    ) -> list[Prediction]:  # fmt: skip
        """Ranks of texts and their pictures (or videos) among all `examples`, in their order; see `mtvl.retrieving`.

        EngineError where weights are partitioned: ranks have other numbers of items and pairs, and make other passes.
        """
        if self._run is not None:
            raise needs_whole_weights(task.name)
        need_heads(self.model.backbone, task.name)
        with self._evaluating():
            self.model.set_task(task.name)
            own = retrieve(
                self.model.backbone, task.name, task.decoding, examples, collator, batch, self.device,
                say if dist.is_main() else None, beat,
            )  # fmt: skip
        return _gathered(task.name, own, examples)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with nullcontext() if self._run is None else dist.lockstep():
                yield
        finally:
            self.model.train(was_training)

    def score(self, task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scores:
        """Score once on rank 0 and hand the result, or the error, to all ranks: none is left waiting."""
        scores, failure = None, None
        if dist.is_main():
            try:
                scores = task.score(predictions, examples)
            except MtvlError as error:
                failure = error
        scores, failure = dist.broadcast_object((scores, failure))
        if failure is not None:
            raise failure
        return scores


def _as_many_on_all_ranks(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """(batch, True) for this rank's own, then (a batch again, False) until the rank with the most has no more either."""
    rest = iter(batches)
    batch = next(rest, None)
    first = dist.gather_objects(batch is None)
    # Rows are dealt from rank 0 on, so that it has a batch whenever any rank has one.
    filler = dist.broadcast_object(batch) if any(first) else batch
    while dist.any_rank(batch is not None):
        if batch is not None:
            filler = batch
        assert filler is not None
        yield filler, batch is not None
        batch = next(rest, None)


def _decoded_alike(decodings: Mapping[str, Decoding], batch: Batch) -> dict[tuple[Decoding, int], list[int]]:
    """Numbers of the parts of `batch` by their decoding; those with choices of their own are apart (their number, else -1)."""
    groups: dict[tuple[Decoding, int], list[int]] = {}
    for number, part in enumerate(batch.parts):
        decoding = decodings[part.task]
        groups.setdefault((decoding, number if decoding.mode == "rank" else -1), []).append(number)
    return groups


def _gathered(task: str, own: Sequence[Prediction], examples: Sequence[Example]) -> list[Prediction]:
    """All ranks' predictions in the order of `examples`; EngineError unless each uid came exactly once."""
    gathered = [p for part in dist.gather_objects(own) for p in part]
    by_uid = {p.uid: p for p in gathered}
    expected = {e.uid for e in examples}
    if len(gathered) != len(by_uid) or set(by_uid) != expected or len(expected) != len(examples):
        raise EngineError(
            f"{task}: {len(examples)} examples, {len(gathered)} predictions of {len(by_uid)} uids; "
            f"missing {sorted(expected - set(by_uid))[:3]}, not asked for {sorted(set(by_uid) - expected)[:3]}"
        )
    return [by_uid[e.uid] for e in examples]


def _best_listed(uid: str, names: Sequence[str], places: Sequence[int], scores: Sequence[float]) -> Prediction:
    """The best of the ranked places of a list, with the scores of the `KEPT` best."""
    ranked = sorted(zip(scores, places, strict=True), key=lambda pair: -pair[0])
    return Prediction(uid, names[ranked[0][1]], {names[place]: score for score, place in ranked[:KEPT]})


def _best(uid: str, names: Sequence[str], scores: Sequence[float]) -> Prediction:
    """The name with the highest score, the first one on a tie."""
    return Prediction(
        uid, names[max(range(len(scores)), key=scores.__getitem__)], dict(zip(names, scores, strict=True))
    )
