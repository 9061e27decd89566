"""Captions of a picture, scored by CIDEr and its companions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from mtvl.data.formats.rows import CaptionRow
from mtvl.metrics.captions import score_captions
from mtvl.tasks.base import BaseTask
from mtvl.types import Example, Scores, Segment, Target, Visual

# The scorers' own spelling -> the names that stand in tables and in eval.json.
_NAMES = {
    "CIDEr": "cider",
    "Bleu_1": "bleu_1",
    "Bleu_2": "bleu_2",
    "Bleu_3": "bleu_3",
    "Bleu_4": "bleu_4",
    "METEOR": "meteor",
    "ROUGE_L": "rouge_l",
}


class Caption(BaseTask):
    """COCO captions and their like: one training example a caption, one evaluation example a picture."""

    def _from_row(self, row: CaptionRow, images: tuple[str, ...], split: str) -> Iterable[Example]:
        segments = (Segment("prompt", self.config.prompt),)
        captions = tuple(text for _, text in row.captions)
        if split != "train":
            # Targets are for the validation loss; scoring uses the references.
            targets = tuple(Target(text) for text in captions)
            yield Example(row.uid, self.name, segments, Visual(images), targets, {"captions": captions})
            return
        for caption_id, text in row.captions:
            uid = f"{row.uid}_{caption_id}"
            yield Example(uid, self.name, segments, Visual(images), (Target(text),), {"captions": captions})

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        references = {uid: list(example.references["captions"]) for uid, example in examples.items()}
        result = score_captions(texts, references, tokenizer=self.evaluate.captions_tokenizer)
        metrics = {_NAMES[name]: value for name, value in result.metrics.items()}
        return dataclasses.replace(result, primary="cider", metrics=metrics)
