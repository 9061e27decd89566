"""How far text alone gets on the videos of a miniworld: questions with options, and captions of moments.

A learner that sees questions, options and subtitles but no frame is trained on train and scored on test. It is linear
over hints that a careless author leaves: which answers are frequent, which options are worded apart from the others,
which repeat the question or the subtitles.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtvl.data.miniworld.grammar import VALUES
from mtvl.data.miniworld.video_forms import NAMES, SPEAKERS

_BUCKETS = 1 << 14
_STEPS, _RATE, _DECAY = 60, 0.3, 2e-3
_EMPTY_WORDS = frozenset(re.findall(r"\w+", "a an the in on of to from at and is are it its with while into this"))
_PEOPLE = {name.lower() for name in (*NAMES, *SPEAKERS)}


@dataclass(frozen=True)
class Choice:
    """A question, its options, the number of the right one, and the words that are said meanwhile."""

    form: str
    question: frozenset[str]
    options: tuple[str, ...]
    right: int
    said: frozenset[str]


@dataclass(frozen=True)
class Moment:
    """The captions of a moment as sets of content words, and the words that are said meanwhile."""

    captions: tuple[frozenset[str], ...]
    said: frozenset[str]


def words_of(text: str) -> list[str]:
    """Lower-case words; punctuation is left out."""
    return re.findall(r"[a-z]+", text.lower())


def choice_figures(train: Sequence[Choice], test: Sequence[Choice]) -> dict[str, float]:
    """Accuracy in per cent on `test` of chance, the best letter, the commonest option of a form, and the learner."""
    letters, wins = Counter(row.right for row in train), Counter[tuple[str, str]]()
    shown: Counter[tuple[str, str]] = Counter()
    for row in train:
        wins[row.form, row.options[row.right]] += 1
        shown.update((row.form, option) for option in row.options)
    letter = letters.most_common(1)[0][0]

    def share(form: str, option: str) -> float:
        return (wins[form, option] + 0.2) / (shown[form, option] + 1.0)

    shares = [[share(row.form, option) for option in row.options] for row in test]
    return {
        "chance": 100.0 * float(np.mean([1 / len(row.options) for row in test])),
        "constant": _percent([letter] * len(test), test),
        "prior": _percent([row.index(max(row)) for row in shares], test),
        "learner": _percent(_learn(train, test), test),
        "num_examples": len(test),
    }


def _percent(chosen: Sequence[int], rows: Sequence[Choice]) -> float:
    return 100.0 * sum(c == row.right for c, row in zip(chosen, rows, strict=True)) / len(rows)


def _learn(train: Sequence[Choice], test: Sequence[Choice]) -> list[int]:
    """Options that a softmax over linear scores of text hints chooses on `test`."""
    hints, right = _table(train), np.array([row.right for row in train])
    weights, squares = np.zeros(_BUCKETS), np.full(_BUCKETS, 1e-8)
    weights[0] = 0.0  # padding
    picked = np.eye(hints.shape[1])[right]
    for _ in range(_STEPS):
        scores = weights[hints].sum(-1)
        error = np.exp(scores - scores.max(1, keepdims=True))
        error = error / error.sum(1, keepdims=True) - picked
        spread = np.broadcast_to(error[..., None], hints.shape)
        slope = np.bincount(hints.ravel(), spread.ravel(), minlength=_BUCKETS) / len(train) + _DECAY * weights / 100
        slope[0] = 0.0
        squares += slope * slope
        weights -= _RATE * slope / np.sqrt(squares)
    return [int(i) for i in weights[_table(test)].sum(-1).argmax(1)]


def _table(rows: Sequence[Choice]) -> np.ndarray:
    """Buckets of the hints of every option: (rows, options, hints) int64, 0 where there is none."""
    found = [[list(_hints(row, number)) for number in range(len(row.options))] for row in rows]
    longest = max(len(hints) for row in found for hints in row)
    table = np.zeros((len(rows), len(rows[0].options), longest), dtype=np.int64)
    for i, row in enumerate(found):
        for j, hints in enumerate(row):
            # crc32 and not hash(): the latter differs from process to process.
            table[i, j, : len(hints)] = [1 + zlib.crc32(h.encode()) % (_BUCKETS - 1) for h in hints]
    return table


def _hints(row: Choice, number: int) -> Iterator[str]:
    option = row.options[number]
    words = set(words_of(option))
    others = [set(words_of(o)) for i, o in enumerate(row.options) if i != number]
    alike = sum(len(words & o) / max(1, len(words | o)) for o in others) / len(others)
    for head in ("any", row.form):
        yield f"{head}|{option}"
        yield f"{head}|words {len(words)}"
        yield f"{head}|asked {len(words & row.question)}"
        yield f"{head}|said {len(words & row.said)}"
        yield f"{head}|alike {round(4 * alike)}"
        for word in sorted(words):
            yield f"{head}|has {word}"
    yield f"letter {number}"


def caption_figures(train: Sequence[Moment], test: Sequence[Moment]) -> dict[str, float]:
    """Overlap of content words (Jaccard, per cent) with the captions of `test`.

    Of the best constant caption, of a caption of the training moment in which nearly the same is said, and, where a
    moment has several captions, of these with each other.
    """
    common = [caption for caption, _ in Counter(c for m in train for c in m.captions).most_common(40)]
    sample = train[:: max(1, len(train) // 200)]
    best = max(common, key=lambda c: sum(_against(c, m.captions) for m in sample))
    nearest = _nearest([m.said for m in train], [m.said for m in test])
    figures = {
        "constant": _mean([_against(best, m.captions) for m in test]),
        "by subtitles": _mean([_against(train[i].captions[0], m.captions) for i, m in zip(nearest, test, strict=True)]),
    }
    within = [overlap(a, b) for m in test for i, a in enumerate(m.captions) for b in m.captions[i + 1 :]]
    if within:
        figures["overlap within a moment"] = _mean(within)
    return {**figures, "num_examples": len(test)}


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard overlap of two sets."""
    return len(a & b) / max(1, len(a | b))


def _mean(values: Sequence[float]) -> float:
    return 100.0 * sum(values) / len(values)


def _against(caption: frozenset[str], references: Sequence[frozenset[str]]) -> float:
    return sum(overlap(caption, r) for r in references) / len(references)


def _nearest(known: Sequence[frozenset[str]], asked: Sequence[frozenset[str]]) -> list[int]:
    """For each of `asked` the number of the most overlapping set of `known`."""
    place = {word: i for i, word in enumerate(sorted(set().union(*known, *asked)))}
    tables = []
    for sets in (known, asked):
        table = np.zeros((len(sets), len(place)), dtype=np.float32)
        for i, words in enumerate(sets):
            table[i, [place[w] for w in words]] = 1.0
        tables.append(table)
    a, b = tables
    both = b @ a.T
    return [int(i) for i in (both / np.maximum(1.0, b.sum(1)[:, None] + a.sum(1)[None] - both)).argmax(1)]


# --- files ------------------------------------------------------------------------------------------------------------


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def subtitles_of(root: Path, family: str) -> dict[str, list[dict[str, Any]]]:
    """vid_name -> lines of the subtitles of a family of videos."""
    return {row["vid_name"]: row["sub"] for row in json_lines(root / "subtitles" / f"{family}_subtitles.jsonl")}


def read_choices(file: Path, subtitles: Mapping[str, Sequence[Mapping[str, Any]]], num_options: int) -> list[Choice]:
    """Rows of a file of TVQA or How2QA."""
    rows = []
    for row in json_lines(file):
        start, end = map(float, row["ts"].split("-"))
        rows.append(
            Choice(
                form=question_form(row["q"]), question=frozenset(words_of(row["q"])),
                options=tuple(row[f"a{i}"] for i in range(num_options)), right=row["answer_idx"],
                said=_said(subtitles[row["vid_name"]], start, end),
            )
        )  # fmt: skip
    return rows


def read_moments(file: Path, subtitles: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Moment]:
    """Rows of a file of TVC or YC2C."""
    rows = []
    for row in json_lines(file):
        start, end = row.get("ts", (0.0, row["duration"]))
        captions = tuple(_content(d["desc"]) for d in row["descs"])
        rows.append(Moment(captions, _said(subtitles[row["vid_name"]], start, end)))
    return rows


def _said(lines: Sequence[Mapping[str, Any]], start: float, end: float) -> frozenset[str]:
    texts = [line["text"] for line in lines if line["start"] < end and line["end"] > start]
    return frozenset(word for text in texts for word in words_of(text))


def question_form(question: str) -> str:
    """`question` with attributes and names replaced by their classes."""
    classes = {value: f"<{name}>" for name, values in VALUES.items() for value in values}
    classes |= dict.fromkeys(_PEOPLE, "<name>")
    return " ".join(classes.get(word, word) for word in words_of(question))


def _content(caption: str) -> frozenset[str]:
    """Words that carry meaning, and pairs of a colour and the shape behind it."""
    words = words_of(caption)
    pairs = {
        f"{a} {b}" for a, b in zip(words, words[1:], strict=False) if a in VALUES["colour"] and b in VALUES["shape"]
    }
    return frozenset(pairs | set(words) - _EMPTY_WORDS)
