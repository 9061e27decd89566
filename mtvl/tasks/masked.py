"""Captions with words left out, which the model restores from the rest and from the picture (pre-training)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from mtvl.data.formats.rows import CaptionRow
from mtvl.data.schedule import stable_bits
from mtvl.metrics.result import Result, check_ids, mean
from mtvl.tasks.base import BaseTask, MaskingConfig
from mtvl.types import Example, Scores, Target, Visual


@dataclass(frozen=True)
class Masked:
    """A text with words left out: what the model reads, what it is to write, and the words that are missing and left."""

    source: str
    target: str
    missing: tuple[str, ...]
    left: tuple[str, ...]


def mask_words(text: str, share: float, mark: str, *key: object) -> Masked:
    """Leave out `share` of the words of `text`, at least one; `key` decides which. Neighbours are left out together.

    With a `mark` such as "<mask>" the whole text is to be written; a numbered one ("<extra_id_{}>") asks for the missing
    words alone, each piece behind its mark and one more mark at the end.
    *Source:* BART's and T5's own pre-training; 15 % and text beside visual tokens from VL-T5 ("multi-modal language modelling").
    """
    words = text.split()
    count = max(1, round(share * len(words)))
    order = sorted(range(len(words)), key=lambda i: stable_bits("mask", *key, i))
    chosen = set(order[:count])
    source, target, number = [], [], 0
    for is_out, group in groupby(range(len(words)), key=chosen.__contains__):
        piece = [words[i] for i in group]
        if is_out:
            source.append(mark.format(number))
            target += [mark.format(number), *piece]
            number += 1
        else:
            source += piece
    whole = " ".join([*target, mark.format(number)]) if is_numbered(mark) else " ".join(words)
    missing = tuple(words[i] for i in sorted(chosen))
    return Masked(" ".join(source), whole, missing, tuple(w for i, w in enumerate(words) if i not in chosen))


def is_numbered(mark: str) -> bool:
    """True for a mark that stands for one piece of text, such as <extra_id_{}>."""
    return "{}" in mark


class MaskedCaption(BaseTask):
    """One example a caption, in all splits; the words are the same in every epoch, and others in another caption."""

    @property
    def _masking(self) -> MaskingConfig:
        return self.config.masking or MaskingConfig()  # a task file of this kind has one

    def _from_row(self, row: CaptionRow, visual: Visual, split: str) -> Iterable[Example]:
        masking = self._masking
        for caption_id, text in row.captions:
            uid = f"{row.uid}_{caption_id}"
            masked = mask_words(text, masking.share, masking.mark, uid)
            # What stands in the answer beside the missing words is not to be counted as restored.
            left = () if is_numbered(masking.mark) else masked.left
            references = {"missing": masked.missing, "left": left}
            yield Example(uid, self.name, self._segments(masked.source), visual, (Target(masked.target),), references)

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        references = {uid: (e.references["missing"], e.references["left"]) for uid, e in examples.items()}
        return score_restored(texts, references, self._masking.mark)


def score_restored(
    texts: Mapping[str, str], references: Mapping[str, tuple[Sequence[str], Sequence[str]]], mark: str
) -> Result:
    """Mean share (percent) of the missing words that stand in the predicted text beside those that were left, in any order.

    `references`: (missing, left) words of each uid. Small and capital letters are alike. Raises DataError unless the ids agree.
    """
    check_ids(texts.keys(), references.keys(), "masked captions")
    start = mark.partition("{}")[0]
    per_item = {}
    for uid, (missing, left) in references.items():
        written = Counter(w for w in texts[uid].lower().split() if not (is_numbered(mark) and w.startswith(start)))
        written -= Counter(w.lower() for w in left)
        wanted = Counter(w.lower() for w in missing)
        per_item[uid] = 100.0 * (written & wanted).total() / wanted.total()
    return Result("restored", {"restored": mean(list(per_item.values()))}, per_item, {"total": len(per_item)})
