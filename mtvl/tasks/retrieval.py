"""Which picture (or video) belongs to a text, and which text to a picture, among all of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mtvl.data.formats.rows import CaptionRow
from mtvl.errors import DataError
from mtvl.tasks.base import BaseTask, match
from mtvl.types import Example, Prediction, Scores, Segment, Target, Visual

RANKS = (
    "text_rank",
    "item_rank",
)  # scores of a prediction: of its picture for its text, and of its picture's best text
RECALLS = (1, 5, 10)


class Retrieval(BaseTask):
    """One example a text, in all splits. `retrieval.joined` joins the texts of an item to one paragraph (DiDeMo).

    A prediction names the best item and holds two ranks, from 1: of the text's own item among all items, and the best rank
    of a text of that item among all texts. Metrics are recalls of both directions (tr: texts of an item, ir: items of a
    text), the mean of the six, and median ranks. *Source:* BLIP's retrieval evaluation.
    """

    has_constant = False
    is_prose = True

    def _from_row(self, row: CaptionRow, visual: Visual, split: str) -> Iterable[Example]:
        captions = row.captions
        if not captions:
            raise DataError(f"task {self.name}: expected a text for every picture or video, found none for {row.uid}",
                            file=row.file, row=row.place)  # fmt: skip
        if self.config.retrieval is not None and self.config.retrieval.joined:
            captions = (("all", " ".join(text for _, text in captions)),)
        for caption_id, text in captions:
            segments = (Segment("prompt", self.config.prompt), Segment("question", text))
            yield Example(
                f"{row.uid}_{caption_id}", self.name, segments, visual, (Target(text),), {"item": row.uid}
            )  # fmt: skip

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Scores:
        """Recalls from the ranks that the predictions hold; DataError unless they are of exactly these examples."""
        match(self.name, predictions, examples)
        ranks = {p.uid: (p.scores[RANKS[0]], p.scores[RANKS[1]]) for p in predictions if set(RANKS) <= set(p.scores)}
        if missing := [e.uid for e in examples if e.uid not in ranks]:
            raise DataError(f"task {self.name}: expected ranks in every prediction, found none in that of {missing[0]}")
        item_of = {e.uid: str(e.references["item"]) for e in examples}
        of_items = {item_of[uid]: item_rank for uid, (_, item_rank) in ranks.items()}
        of_texts = [text_rank for text_rank, _ in ranks.values()]
        metrics = {f"tr{k}": _recall(list(of_items.values()), k) for k in RECALLS}
        metrics |= {f"ir{k}": _recall(of_texts, k) for k in RECALLS}
        metrics |= {
            "tr_mean": sum(metrics[f"tr{k}"] for k in RECALLS) / 3, "ir_mean": sum(metrics[f"ir{k}"] for k in RECALLS) / 3,
            "tr_median": _median(list(of_items.values())), "ir_median": _median(of_texts),
            "num_items": float(len(of_items)),
        }  # fmt: skip
        metrics["r_mean"] = (metrics["tr_mean"] + metrics["ir_mean"]) / 2
        # An item's half is shared out over its texts, so that the mean over texts is r_mean.
        texts_of = Counter(item_of.values())
        share = {item: len(examples) / len(of_items) / count for item, count in texts_of.items()}
        per_item = {
            uid: (_hits(text_rank) + _hits(item_rank) * share[item_of[uid]]) / 2
            for uid, (text_rank, item_rank) in ranks.items()
        }
        return Scores(self.primary, metrics, per_item)

    def _score(self, texts: Mapping[str, str], examples: Mapping[str, Example]) -> Scores:
        raise DataError(f"task {self.name}: texts alone cannot be scored, ranks are wanted")


def _recall(ranks: Sequence[float], k: int) -> float:
    return 100 * sum(rank <= k for rank in ranks) / len(ranks)


def _hits(rank: float) -> float:
    """Mean over the recalls, in percent, of one rank."""
    return 100 * sum(rank <= k for k in RECALLS) / len(RECALLS)


def _median(ranks: Sequence[float]) -> float:
    ordered, middle = sorted(ranks), len(ranks) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
