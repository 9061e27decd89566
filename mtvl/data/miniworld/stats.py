"""How far text alone gets on a miniworld: the check that its questions are balanced."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtvl.data.miniworld.grammar import NUMBER_WORDS, VALUES, Kind
from mtvl.data.miniworld.video_stats import caption_figures, choice_figures, read_choices, read_moments, subtitles_of
from mtvl.data.miniworld.write import VIDEO_FILES


@dataclass(frozen=True)
class TextRow:
    """A question text and what each answer to it scores (0 to 1)."""

    text: str
    scores: dict[str, float]

    @property
    def best(self) -> str:
        """The answer that scores most."""
        return max(sorted(self.scores), key=lambda a: self.scores[a])


_CLASSES = {value: name for name, values in VALUES.items() for value in values}
_CLASSES |= {Kind(shape=shape).plural: "shapes" for shape in VALUES["shape"]}
_CLASSES |= dict.fromkeys(NUMBER_WORDS[1:], "number")


def text_only(root: Path) -> dict[str, dict[str, float]]:
    """Accuracy in per cent of predictors that see no picture or frame, per task: trained on train, scored on test.

    `exact` answers with the most frequent training answer of the very text, or else of its pattern; `pattern` ignores
    which objects are named, but may point at a word of the question ("is it red or blue?": the second one). For the
    video tasks see `choice_figures` and `caption_figures`.
    """
    results = {}
    for task, read in (("vqa", _vqa), ("gqa", _gqa), ("nlvr2", _nlvr2)):
        train, test = read(root, "train"), read(root, "test")
        results[task] = {
            "exact": _accuracy(train, test, use_text=True),
            "pattern": _accuracy(train, test, use_text=False),
            "chance of a constant": _constant(train, test),
            "num_examples": len(test),
        }
    results["coco"] = _captions(root)
    for task, (family, num_options) in _VIDEO_TASKS.items():
        subtitles = subtitles_of(root, family)
        files = [root / task / f"{VIDEO_FILES[task][split]}.jsonl" for split in ("train", "test")]
        if num_options:
            results[task] = choice_figures(*(read_choices(file, subtitles, num_options) for file in files))
        else:
            results[task] = caption_figures(*(read_moments(file, subtitles) for file in files))
    return results


_VIDEO_TASKS = {"tvqa": ("tv", 5), "how2qa": ("how2", 4), "tvc": ("tv", 0), "yc2c": ("yc2", 0)}  # options; 0: captions


def pattern(text: str) -> str:
    """`text` with the names of attributes and numbers replaced by their classes."""
    return re.sub(r"[a-z]+", lambda m: f"<{_CLASSES[m[0]]}>" if m[0] in _CLASSES else m[0], text)


def _vqa(root: Path, split: str) -> list[TextRow]:
    questions = json.loads((root / "vqa" / f"v2_OpenEnded_mscoco_{split}2014_questions.json").read_text())["questions"]
    notes = json.loads((root / "vqa" / f"v2_mscoco_{split}2014_annotations.json").read_text())["annotations"]
    rows = []
    for question, note in zip(questions, notes, strict=True):
        given = Counter(a["answer"] for a in note["answers"])
        rows.append(TextRow(question["question"], {a: min(1.0, 0.3 * n) for a, n in given.items()}))
    return rows


def _gqa(root: Path, split: str) -> list[TextRow]:
    name = {"test": "testdev"}.get(split, split)
    rows = json.loads((root / "gqa" / f"{name}_balanced_questions.json").read_text())
    return [TextRow(row["question"], {row["answer"]: 1.0}) for row in rows.values()]


def _nlvr2(root: Path, split: str) -> list[TextRow]:
    name = {"test": "test1"}.get(split, split)
    lines = (root / "nlvr2" / f"{name}.json").read_text().splitlines()
    return [TextRow(row["sentence"], {row["label"]: 1.0}) for row in map(json.loads, lines)]


def _accuracy(train: Sequence[TextRow], test: Sequence[TextRow], use_text: bool) -> float:
    by_text: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_pattern: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        by_text[row.text][row.best] += 1
        by_pattern[pattern(row.text)].update(_pointers(row.text, row.best))
    everywhere = Counter(row.best for row in train)
    total = 0.0
    for row in test:
        if use_text and row.text in by_text:
            answer = by_text[row.text].most_common(1)[0][0]
        else:
            votes = by_pattern.get(pattern(row.text)) or everywhere
            answer = _follow(row.text, votes.most_common(1)[0][0])
        total += row.scores.get(answer, 0.0)
    return 100.0 * total / len(test)


def _pointers(text: str, answer: str) -> list[str]:
    """The answer itself, or its places among the words of the question."""
    return [f"@{i}" for i, word in enumerate(re.findall(r"[a-z]+", text)) if word == answer] or [answer]


def _follow(text: str, pointer: str) -> str:
    return re.findall(r"[a-z]+", text)[int(pointer[1:])] if pointer.startswith("@") else pointer


def _constant(train: Sequence[TextRow], test: Sequence[TextRow]) -> float:
    answer = Counter(row.best for row in train).most_common(1)[0][0]
    return 100.0 * sum(row.scores.get(answer, 0.0) for row in test) / len(test)


def _captions(root: Path) -> dict[str, float]:
    """Overlap of content words (Jaccard, per cent) of captions of one picture and of neighbouring pictures."""
    images = json.loads((root / "coco" / "dataset_coco.json").read_text())["images"]
    words = [[_content(s["tokens"]) for s in image["sentences"]] for image in images if image["split"] == "test"]
    within = [_overlap(a, b) for five in words for i, a in enumerate(five) for b in five[i + 1 :]]
    across = [_overlap(a, b) for one, other in zip(words, words[1:], strict=False) for a in one for b in other]
    return {
        "overlap within a picture": 100.0 * sum(within) / len(within),
        "overlap across pictures": 100.0 * sum(across) / len(across),
        "num_examples": len(words),
    }


def _content(tokens: Sequence[str]) -> frozenset[str]:
    """Adjacent pairs of a colour and a shape count as one word: a caption is right about things, not about words."""
    pairs = {f"{a} {b}" for a, b in zip(tokens, tokens[1:], strict=False) if a in VALUES["colour"]}
    return frozenset(pairs | {t for t in tokens if t in _CLASSES})


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / max(1, len(a | b))
