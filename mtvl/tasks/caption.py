"""Captions of a picture or of a moment of a video, scored by CIDEr and its companions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from mtvl.data.formats.rows import CaptionRow
from mtvl.metrics.captions import score_captions
from mtvl.tasks.base import BaseTask, subset_of
from mtvl.tasks.results import ResultFile, coco_results, value_caption_results
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
    """COCO, TVC, YC2C and their like: one training example a caption, one evaluation example a picture or moment.

    *Source:* VALUE's rules for the videos, where a moment is scored against all its captions; VL-Adapter validates
    every caption of TVC by itself.
    """

    is_prose = True

    def _from_row(self, row: CaptionRow, visual: Visual, split: str) -> Iterable[Example]:
        prompt = (Segment("prompt", self.config.prompt),)
        segments = prompt if row.clip is None else self._video_segments(row.clip)
        captions = tuple(text for _, text in row.captions)
        references = {"captions": captions, **subset_of(row)} if captions else {}
        if split != "train":
            # Targets are for the validation loss; scoring uses the references.
            targets = tuple(Target(text) for text in captions)
            yield Example(row.uid, self.name, segments, visual, targets, references)
            return
        for caption_id, text in row.captions:
            yield Example(f"{row.uid}_{caption_id}", self.name, segments, visual, (Target(text),), references)

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        references = {uid: list(example.references["captions"]) for uid, example in examples.items()}
        tokenizer, ascii_only = self.evaluate.captions_tokenizer, self.config.ascii_only
        result = score_captions(texts, references, tokenizer=tokenizer, ascii_only=ascii_only)
        metrics = {_NAMES[name]: value for name, value in result.metrics.items()}
        for subset in sorted({e.references["subset"] for e in examples.values() if "subset" in e.references}):
            items = [result.per_item[uid] for uid, e in examples.items() if e.references.get("subset") == subset]
            metrics[f"cider/{subset}"] = sum(items) / len(items)
        return dataclasses.replace(result, primary="cider", metrics=metrics)

    def _result_file(self, texts: Mapping[str, str], stem: str) -> ResultFile | None:
        return coco_results(texts, stem) if self.config.video is None else value_caption_results(texts, stem)
