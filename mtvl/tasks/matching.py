"""Does the caption belong to the picture? Half of the captions are those of another picture (pre-training)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mtvl.data.formats.rows import CaptionRow
from mtvl.data.schedule import stable_bits
from mtvl.errors import DataError
from mtvl.metrics.answers import score_answers
from mtvl.tasks.base import BaseTask
from mtvl.types import Example, Scores, Target, Visual

TRIES = 20  # other pictures that are looked at for a caption that this picture does not have


class Matching(BaseTask):
    """One example a caption, in all splits: "true" with its own picture's caption, "false" with one of another picture.

    Which it is, and whose caption it is then, hangs on the caption's id alone. *Source:* VL-T5, image-text matching with
    half of the captions exchanged; there they are exchanged anew in every epoch.
    """

    is_prose = True
    _rows: Sequence[CaptionRow] = ()

    def _see(self, rows: Sequence[CaptionRow]) -> None:
        self._rows = [row for row in rows if row.captions]
        if len(self._rows) < 2:
            raise DataError(f"task {self.name}: expected captions of at least two pictures, found {len(self._rows)}",
                            file=rows[0].file)  # fmt: skip

    def _from_row(self, row: CaptionRow, visual: Visual, split: str) -> Iterable[Example]:
        for caption_id, text in row.captions:
            uid = f"{row.uid}_{caption_id}"
            is_true = stable_bits("match", uid) % 2 == 0
            shown = text if is_true else self._foreign(row, uid)
            answer = "true" if is_true else "false"
            yield Example(
                uid, self.name, self._segments(shown), visual, (Target(answer),), {"answers": (answer,)}
            )  # fmt: skip

    def _foreign(self, row: CaptionRow, uid: str) -> str:
        """A caption of another picture that this one does not have."""
        own = {text for _, text in row.captions}
        for number in range(TRIES):
            bits = stable_bits("foreign", uid, number)
            other = self._rows[bits % len(self._rows)]
            text = other.captions[(bits >> 64) % len(other.captions)][1]
            if other.uid != row.uid and text not in own:
                return text
        raise DataError(
            f"task {self.name}: expected captions that differ from picture to picture, found none for {row.uid} among "
            f"{TRIES} others",
            file=row.file, row=row.place,
        )  # fmt: skip

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        return score_answers(texts, {uid: e.references["answers"] for uid, e in examples.items()})
