"""Predicting a split on all ranks and scoring it once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from mtvl import dist
from mtvl.errors import EngineError, MtvlError
from mtvl.model import Model
from mtvl.types import Batch, Example, Prediction, Scores, Task, Tokenizer


class Evaluator:
    """Shards by uid, gathers, asserts that the uid set equals the split, scores once on every rank's same input."""

    def __init__(self, model: Model, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device

    def predict_batch(self, task: Task, batch: Batch) -> list[Prediction]:
        """Answers to one batch: generated text, or the best of the task's choices with their scores."""
        self.model.set_task(task.name)
        batch = batch.to(self.device)
        decoding = task.decoding
        if decoding.mode != "generate":
            if decoding.mode == "rank":
                scores = self.model.rank(batch)
            else:
                scores = self.model.choose(
                    batch, [self.tokenizer.wrap(self.tokenizer.encode(c)) for c in decoding.choices]
                )
            return [_best(uid, decoding.choices, row) for uid, row in zip(batch.uids, scores.tolist(), strict=True)]
        ids = self.model.generate(batch, decoding).tolist()
        return [Prediction(uid, self.tokenizer.decode(row)) for uid, row in zip(batch.uids, ids, strict=True)]

    def predict(
        self, task: Task, examples: Sequence[Example], batches: Iterable[Batch],
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:  # fmt: skip
        """All ranks' predictions in the order of `examples`; EngineError unless each uid came exactly once."""
        was_training = self.model.training
        self.model.eval()
        own: list[Prediction] = []
        try:
            for batch in batches:
                own += self.predict_batch(task, batch)
                if progress:
                    progress(len(own))
        finally:
            self.model.train(was_training)
        gathered = [p for part in dist.gather_objects(own) for p in part]
        by_uid = {p.uid: p for p in gathered}
        expected = {e.uid for e in examples}
        if len(gathered) != len(by_uid) or set(by_uid) != expected or len(expected) != len(examples):
            raise EngineError(
                f"{task.name}: {len(examples)} examples, {len(gathered)} predictions of {len(by_uid)} uids; "
                f"missing {sorted(expected - set(by_uid))[:3]}, not asked for {sorted(set(by_uid) - expected)[:3]}"
            )
        return [by_uid[e.uid] for e in examples]

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


def _best(uid: str, names: Sequence[str], scores: Sequence[float]) -> Prediction:
    """The name with the highest score, the first one on a tie."""
    return Prediction(
        uid, names[max(range(len(scores)), key=scores.__getitem__)], dict(zip(names, scores, strict=True))
    )
