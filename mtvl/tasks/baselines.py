"""The constant baseline: one answer, or one caption, for everything."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from mtvl.errors import DataError
from mtvl.tasks.caption import Caption
from mtvl.types import Example, Prediction, Scores, Task

MAX_CAPTIONS = 5000  # a consensus of this many takes about a second; more do not change its kind
_MAX_N = 4


def constant_baseline(task: Task, train_examples: Sequence[Example], eval_examples: Sequence[Example]) -> Scores:
    """Score the best single answer (or caption) of the training examples on the evaluation examples."""
    choose = central_caption if isinstance(task, Caption) else heaviest_answer
    text = choose(train_examples)
    return task.score([Prediction(e.uid, text) for e in eval_examples], eval_examples)


def heaviest_answer(examples: Sequence[Example]) -> str:
    """The answer with the largest sum of target weights; the first in the alphabet on a tie.

    Where every example has choices of its own it is the name of a choice.
    """
    weights: dict[str, float] = defaultdict(float)
    for example in examples:
        if example.choices:
            weights[example.references["answer"]] += 1
            continue
        for target in example.targets:
            weights[target.text] += target.weight
    if not weights:
        raise DataError("constant baseline: expected training answers, found none")
    return min(weights, key=lambda text: (-weights[text], text))


def central_caption(examples: Sequence[Example]) -> str:
    """The training caption whose tf-idf n-grams lie nearest to the mean of all captions (n = 1..4, as CIDEr weighs them).

    Linear in the number of captions; evenly spaced `MAX_CAPTIONS` of them stand for the rest.
    """
    captions = [target.text for example in examples for target in example.targets]
    if not captions:
        raise DataError("constant baseline: expected training captions, found none")
    captions = captions[:: math.ceil(len(captions) / MAX_CAPTIONS)]
    counts = [_ngrams(text) for text in captions]
    documents = Counter(gram for found in counts for gram in found)
    vectors = [_unit({g: n * math.log(len(counts) / documents[g]) for g, n in found.items()}) for found in counts]
    centre: dict[tuple[str, ...], float] = defaultdict(float)
    for vector in vectors:
        for gram, value in vector.items():
            centre[gram] += value
    nearness = [sum(value * centre[gram] for gram, value in vector.items()) for vector in vectors]
    return captions[max(range(len(captions)), key=lambda i: (nearness[i], -i))]


def _ngrams(text: str) -> Counter[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return Counter(tuple(words[i : i + n]) for n in range(1, _MAX_N + 1) for i in range(len(words) - n + 1))


def _unit(vector: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    length = math.sqrt(sum(v * v for v in vector.values()))
    return {g: v / length for g, v in vector.items()} if length else {}
