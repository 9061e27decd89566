"""Questions in the style of VQA v2, and the ten annotators who answer them."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from mtvl.data.miniworld.balance import Asked, Maker
from mtvl.data.miniworld.grammar import (
    DIRECTIONS,
    QUARTERS,
    VALUES,
    Kind,
    beyond,
    count,
    kinds_of_form,
    named_things,
    quarter,
    stands,
    towards,
)
from mtvl.data.miniworld.scene import COLOURS, SHAPES, Scene, Thing

YES_NO = ("yes", "no")
Item = TypeVar("Item")
_FORMS_OF_EXISTENCE = (("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("texture", "shape"))


def yes(truth: bool) -> str:
    """ "yes" or "no"."""
    return "yes" if truth else "no"


def matching(scene: Scene, *kinds: Kind) -> tuple[Thing, ...]:
    """The objects that any of `kinds` describes."""
    return tuple(thing for thing in scene.objects if any(kind.matches(thing) for kind in kinds))


def named(scene: Scene, without: tuple[str, ...] = ()) -> Iterator[tuple[Thing, Kind]]:
    """Every object with each of its unique references."""
    return ((thing, kind) for thing, kinds in named_things(scene, without) for kind in kinds)


def few(rng: random.Random, items: Iterable[Item], number: int) -> list[Item]:
    """At most `number` of `items`, drawn before anything dear is made of them."""
    found = list(items)
    return found if len(found) <= number else rng.sample(found, number)


def named_pairs(
    scene: Scene, rng: random.Random, number: int, without: tuple[str, ...] = ()
) -> list[tuple[Thing, Kind, Thing, Kind]]:
    """At most `number` ordered pairs of different objects, references of one length (so that neither stands out)."""
    pairs = itertools.permutations(list(named(scene, without)), 2)
    return few(
        rng,
        [
            (a, a_kind, b, b_kind)
            for (a, a_kind), (b, b_kind) in pairs
            if a != b and len(a_kind.attributes) == len(b_kind.attributes)
        ],
        number,
    )


def _exists(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    kinds = [k for form in _FORMS_OF_EXISTENCE for k in kinds_of_form(form, with_held_out)]
    end = rng.choice(("?", " in the picture?"))
    return [
        Asked("exists", f"is there {k.any}{end}", yes(count(scene, k) > 0), YES_NO, (k,), matching(scene, k))
        for k in kinds
    ]


def _verifies(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    found = []
    for attribute, values in VALUES.items():
        for thing, kind in few(rng, named(scene, (attribute,)), 2):
            for value in values:
                noun = f"a {value}" if attribute == "shape" else value
                truth = value == getattr(thing, attribute)
                if with_held_out or not _joins_held_out(kind, attribute, value):
                    found.append(Asked("verifies", f"is {kind.the} {noun}?", yes(truth), YES_NO, (kind,), (thing,)))
    return found


def _joins_held_out(kind: Kind, attribute: str, value: str) -> bool:
    """True for "is the heart red?": outside the test split the answer would always be no."""
    parts = {**kind.attributes, attribute: value}
    return Kind(**parts).is_held_out


def query_of(attribute: str, text: str) -> Maker:
    """Maker of questions for one attribute of a named object; `text` holds {the}."""

    def make(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
        del rng, with_held_out
        return [
            Asked(attribute, text.format(the=kind.the), getattr(thing, attribute), VALUES[attribute], (kind,), (thing,))
            for thing, kind in named(scene, (attribute,))
        ]

    return make


def _offers(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    found = []
    for attribute, values in VALUES.items():
        for thing, kind in few(rng, named(scene, (attribute,)), 1):
            for value in values:
                right = getattr(thing, attribute)
                if value == right or (not with_held_out and _joins_held_out(kind, attribute, value)):
                    continue
                for pair in ((right, value), (value, right)):
                    nouns = [f"a {v}" if attribute == "shape" else v for v in pair]
                    text = f"is {kind.the} {nouns[0]} or {nouns[1]}?"
                    found.append(Asked("offers", text, right, pair, (kind,), (thing,), offers=True))
    return found


_COUNT_OPTIONS = ("0", "1", "2", "3", "4")
_OBJECT_OPTIONS = ("3", "4", "5", "6")


def _counts(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    del with_held_out
    end = rng.choice(("are there?", "can you see?", "are in the picture?"))
    kinds = [k for form in (("shape",), ("colour",), ("texture",), ("size",)) for k in kinds_of_form(form, False)]
    numbers = [(k, str(count(scene, k))) for k in kinds]
    return [
        Asked("counts", f"how many {k.plural} {end}", n, _COUNT_OPTIONS, (k,), matching(scene, k))
        for k, n in numbers
        if n in _COUNT_OPTIONS
    ]


def _counts_all(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    del with_held_out
    end = rng.choice(("are there?", "can you see?", "are in the picture?"))
    return [Asked("counts all", f"how many objects {end}", str(len(scene.objects)), _OBJECT_OPTIONS)]


def _relates(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    del with_held_out
    found = []
    for a, a_kind, b, b_kind in named_pairs(scene, rng, 12):
        for direction in DIRECTIONS:
            if stands(a, direction, b) or stands(b, direction, a):
                text = f"is {a_kind.the} {towards(direction)} {b_kind.the}?"
                found.append(Asked("relates", text, yes(stands(a, direction, b)), YES_NO, (a_kind, b_kind), (a, b)))
    return found


def _compares(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    del with_held_out
    pairs: list[tuple[Kind, Kind, bool]] = []
    for form in (("shape",), ("colour",), ("texture",), ("size",)):
        there = [(kind, n) for kind in kinds_of_form(form, False) if (n := count(scene, kind))]
        pairs += [(a, b, m > n) for (a, m), (b, n) in itertools.permutations(there, 2) if m != n]
    return [
        Asked("compares", f"are there more {a.plural} than {b.plural}?", yes(more), YES_NO, (a, b),
              matching(scene, a, b))
        for a, b, more in few(rng, pairs, 24)
    ]  # fmt: skip


def _same(attribute: str, word: str) -> Maker:
    """One form per attribute: equal sizes are common and equal colors rare, so one balance for all would not do."""

    def make(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
        del with_held_out
        found = []
        for a, a_kind, b, b_kind in named_pairs(scene, rng, 40, (attribute,)):
            truth = getattr(a, attribute) == getattr(b, attribute)
            text = f"are {a_kind.the} and {b_kind.the} the same {word}?"
            found.append(Asked(f"same {word}", text, yes(truth), YES_NO, (a_kind, b_kind), (a, b)))
        return found

    return make


def _where(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    del with_held_out
    text = rng.choice(("where is {the}?", "which quarter of the picture is {the} in?"))
    return [
        Asked("where", text.format(the=kind.the), quarter(thing), QUARTERS, (kind,), (thing,))
        for thing, kind in named(scene)
    ]


def _beside(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    del rng, with_held_out
    found = []
    for thing, kind in named(scene):
        for direction in DIRECTIONS:
            others = beyond(scene, direction, thing)
            if len(others) == 1:
                other, place = others[0], f"{towards(direction)} {kind.the}"
                found.append(Asked("shape of", f"what shape is {place}?", other.shape, SHAPES, (kind,), (thing, other)))
                text = f"what color is the object {place}?"
                found.append(Asked("colour of", text, other.colour, COLOURS, (kind,), (thing, other)))
    return found


VQA_FORMS: dict[str, tuple[Maker, float]] = {
    "exists": (_exists, 9), "verifies": (_verifies, 7), "relates": (_relates, 7), "compares": (_compares, 5),
    "same color": (_same("colour", "color"), 2), "same shape": (_same("shape", "shape"), 2),
    "same size": (_same("size", "size"), 1), "offers": (_offers, 5), "colour": (query_of("colour", "what color is {the}?"), 13),
    "shape": (query_of("shape", "what shape is {the}?"), 10), "counts": (_counts, 13), "counts all": (_counts_all, 3),
    "size": (query_of("size", "what size is {the}?"), 3),
    "texture": (query_of("texture", "what pattern does {the} have?"), 6), "where": (_where, 8), "beside": (_beside, 6),
}  # fmt: skip

_QUESTION_TYPES = (
    "how many", "what color is the", "what color is", "what is the", "what is", "what", "is there a", "is there",
    "is the", "is", "are there", "are the", "are", "where is the", "which",
)  # fmt: skip


def question_type(text: str) -> str:
    """The longest official question type that `text` begins with."""
    fitting = [t for t in _QUESTION_TYPES if text.startswith(t + " ")]
    return max(fitting, key=len) if fitting else "none of the above"


def answer_type(answer: str) -> str:
    """ "yes/no", "number" or "other"."""
    if answer in YES_NO:
        return "yes/no"
    return "number" if answer.isdigit() else "other"


# What a person might write instead: another word for the same, or a neighbouring answer.
_OTHER_WORDS = {
    "red": ("crimson", "orange"), "yellow": ("gold", "orange"), "green": ("dark green", "lime"),
    "cyan": ("light blue", "turquoise", "blue"), "blue": ("dark blue", "navy"), "purple": ("violet", "pink"),
    "brown": ("tan", "dark brown"), "black": ("dark gray", "dark"), "circle": ("round", "ball"),
    "square": ("box", "rectangle"), "triangle": ("pyramid", "cone"), "star": ("starfish", "five pointed star"),
    "cross": ("plus", "plus sign"), "heart": ("love heart", "valentine"), "small": ("little", "tiny"),
    "large": ("big", "huge"), "plain": ("solid", "none"), "striped": ("stripes", "lines"), "dotted": ("dots", "spots"),
    "top left": ("upper left", "left"), "top right": ("upper right", "right"), "bottom left": ("lower left", "left"),
    "bottom right": ("lower right", "right"), "yes": ("no",), "no": ("yes",),
}  # fmt: skip
# How often 0, 1, ... of the ten annotators deviate; the true answer always keeps a clear majority.
_DEVIATING = {"yes/no": (70, 15, 8, 7), "number": (55, 15, 12, 10, 8), "other": (45, 18, 15, 12, 10)}


def annotators(answer: str, rng: random.Random) -> list[dict[str, object]]:
    """Ten answers in the official form, the true one most frequent."""
    weights = _DEVIATING[answer_type(answer)]
    deviating = rng.choices(range(len(weights)), weights)[0]
    others = _OTHER_WORDS.get(answer) or tuple(str(n) for n in (int(answer) - 1, int(answer) + 1) if n >= 0)
    given = [answer] * (10 - deviating) + [rng.choice(others) for _ in range(deviating)]
    rng.shuffle(given)
    return [
        {
            "answer": text,
            "answer_confidence": rng.choices(("yes", "maybe", "no"), (90, 8, 2) if text == answer else (50, 40, 10))[0],
            "answer_id": i,
        }
        for i, text in enumerate(given, start=1)
    ]


def most_frequent(answers: Sequence[dict[str, object]]) -> str:
    """The answer that most annotators gave."""
    return str(Counter(a["answer"] for a in answers).most_common(1)[0][0])
