"""Text for pretraining a backbone on pictures of disjoint seeds: masked statements and dense descriptions.

The wording is kept apart from that of the benchmark files on purpose, while the reasoning behind it is the same: a
backbone pretrained on it knows the pictures, and an adapter still has the form of the tasks to learn. Held-out
compositions are never mentioned.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from mtvl.data.miniworld.grammar import (
    ATTRIBUTES,
    DIRECTIONS,
    NUMBER_WORDS,
    VALUES,
    Kind,
    beyond,
    count,
    kind_of,
    kinds_of_form,
    named_things,
    pick_by_count,
    quarter,
    stands,
    towards,
)
from mtvl.data.miniworld.scene import Scene, Thing

MASK = "<mask>"
Cloze = tuple[str, str]  # masked text, answer

_ATTRIBUTE_TEXTS = {
    "colour": (
        "{the} has the color {m}", "painted {m} : {the}", "{the} comes in {m}", "among the {m} things belongs {the}",
    ),
    "shape": ("{the} has the form of a {m}", "form of {the} : {m}", "{the} makes a {m}", "{the} , namely a {m}"),
    "size": ("{the} appears {m}", "extent of {the} : {m}", "{the} takes {m} space"),
    "texture": ("{the} has a {m} surface", "surface of {the} : {m}", "{the} , drawn {m}"),
}  # fmt: skip
_COUNT_TEXTS = ("one can count {m} {plural} here", "{plural} : {m}", "the number of {plural} equals {m}")
_QUARTER_TEXTS = ("{the} sits in the {m} quarter", "place of {the} : {m}", "look {m} for {the}")
_MENTIONS = (("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("texture", "shape"), ("size", "colour"))
_COUNTABLE = (("shape",), ("colour",), ("size",), ("texture",))


def cloze(scene: Scene, rng: random.Random, *, easy: float = 1.0) -> list[Cloze]:
    """Masked statements about one picture with the text that `<mask>` stands for (about twenty, in random order).

    Numbers are answered with digits, truth with "yes" or "no". `easy` is the share that is kept of those that need one
    object alone: they are learned long before the others.
    """
    found: list[Cloze] = []
    for make in KINDS_OF_PICTURES:
        if easy < 1 and make in _EASY and rng.random() >= easy:
            continue
        found += make(scene, rng)
    rng.shuffle(found)
    return found


def cloze_pair(left: Scene, right: Scene, rng: random.Random) -> list[Cloze]:
    """Masked statements about two pictures (about ten, in random order); answers as in `cloze`, or "left"/"right"."""
    found: list[Cloze] = []
    for make in KINDS_OF_PAIRS:
        found += make(left, right, rng)
    rng.shuffle(found)
    return found


def describe(scene: Scene, rng: random.Random) -> str:
    """Every object with all its attributes and its quarter, in reading order."""
    parts = []
    for thing in scene.objects:
        kind = kind_of(thing)
        text = rng.choice(("{a} in the {q}", "in the {q} {a}", "{q} : {a}"))
        parts.append(text.format(a=kind.any, q=quarter(thing)))
    return rng.choice((" , ", " ; ", " , then ")).join(parts)


def _mentions(things: tuple[Thing, ...], rng: random.Random, present: bool) -> Kind | None:
    """A kind that occurs among `things` (or one that does not); None when a draw does not find one."""
    form = rng.choice(_MENTIONS)
    kinds = [k for k in kinds_of_form(form, False) if any(k.matches(t) for t in things) == present]
    return rng.choice(kinds) if kinds else None


def _truth(statement: str, is_true: bool, rng: random.Random) -> Cloze:
    text = rng.choice(("{m} : {s}", "{m} : {s}", "{s} ? {m}", "right or not , {s} : {m}"))
    return text.format(m=MASK, s=statement), "yes" if is_true else "no"


def _two_named(scene: Scene, rng: random.Random) -> tuple[Thing, Kind, Thing, Kind] | None:
    """Two objects with a unique reference each."""
    named = _named(scene)
    if len(named) < 2:
        return None
    (a, a_kinds), (b, b_kinds) = rng.sample(named, 2)
    return a, rng.choice(a_kinds), b, rng.choice(b_kinds)


def _named(scene: Scene, without: tuple[str, ...] = ()) -> list[tuple[Thing, list[Kind]]]:
    allowed = [(t, [k for k in kinds if not k.is_held_out]) for t, kinds in named_things(scene, without)]
    return [(thing, kinds) for thing, kinds in allowed if kinds]


def _attributes(scene: Scene, rng: random.Random) -> list[Cloze]:
    found = []
    for attribute in ATTRIBUTES:
        named = _named(scene, without=(attribute,))
        for thing, kinds in rng.sample(named, min(2 if attribute in ("colour", "shape") else 1, len(named))):
            text = rng.choice(_ATTRIBUTE_TEXTS[attribute])
            found.append((text.format(the=rng.choice(kinds).the, m=MASK), str(getattr(thing, attribute))))
    return found


def _is_attribute(scene: Scene, rng: random.Random) -> list[Cloze]:
    attribute = rng.choice(ATTRIBUTES)
    named = _named(scene, without=(attribute,))
    if not named:
        return []
    thing, kinds = rng.choice(named)
    value = str(getattr(thing, attribute))
    other = rng.choice([v for v in VALUES[attribute] if v != value])
    said = rng.choice((value, other))
    noun = f"a {said}" if attribute == "shape" else said
    first, second = rng.sample((value, other), 2)
    the = rng.choice(kinds).the
    return [
        _truth(f"one finds {the} to be {noun}", said == value, rng),
        (f"either {first} or {second} , {the} : {MASK}", value),
    ]


def _exists(scene: Scene, rng: random.Random) -> list[Cloze]:
    found = []
    for _ in range(2):
        is_there = rng.random() < 0.5
        kind = _mentions(scene.objects, rng, is_there)
        if kind:
            found.append(
                _truth(rng.choice(("there is {}", "it shows {}", "{} occurs")).format(kind.any), is_there, rng)
            )
    return found


def _counts(scene: Scene, rng: random.Random) -> list[Cloze]:
    found = [(rng.choice(_COUNT_TEXTS).format(plural="objects", m=MASK), str(len(scene.objects)))]
    for form in (("shape",), ("colour",), rng.choice(_COUNTABLE)):
        kind, number = pick_by_count(rng, scene, kinds_of_form(form, False), most=6)
        found.append((rng.choice(_COUNT_TEXTS).format(plural=kind.plural, m=MASK), str(number)))
    kind, number = pick_by_count(rng, scene, kinds_of_form(rng.choice(_COUNTABLE), False), most=6)
    said = number if rng.random() < 0.5 else rng.choice([n for n in range(5) if n != number])
    found.append(_truth(f"it shows exactly {kind.counted(said)}", said == number, rng))
    return found


def _compares(scene: Scene, rng: random.Random) -> list[Cloze]:
    kinds = list(kinds_of_form(rng.choice((("shape",), ("colour",), ("texture",))), False))
    rng.shuffle(kinds)
    wanted = rng.choice((-1, 0, 1))
    for i, a in enumerate(kinds):
        for b in kinds[i + 1 :]:
            difference = count(scene, a) - count(scene, b)
            if (difference > 0) - (difference < 0) == wanted and (difference or count(scene, a)):
                word = {-1: "fewer", 0: "as many", 1: "more"}[wanted]
                said = rng.choice(("fewer", "as many", "more"))
                said = word if rng.random() < 0.4 else said
                joint = "as" if said == "as many" else "than"
                return [
                    (f"comparing {a.plural} to {b.plural} , there are {MASK} of them", word),
                    _truth(f"it holds {said} {a.plural} {joint} {b.plural}", said == word, rng),
                ]
    return []


def _same(scene: Scene, rng: random.Random) -> list[Cloze]:
    attribute = rng.choice(ATTRIBUTES)
    named = _named(scene, without=(attribute,))
    pairs = [(a, b) for i, a in enumerate(named) for b in named[i + 1 :]]
    wanted = rng.random() < 0.5
    pairs = [(a, b) for a, b in pairs if (getattr(a[0], attribute) == getattr(b[0], attribute)) == wanted]
    if not pairs:
        return []
    a, b = rng.sample(rng.choice(pairs), 2)
    word = {"colour": "color", "texture": "surface"}.get(attribute, attribute)
    text = f"{rng.choice(a[1]).the} and {rng.choice(b[1]).the} have {MASK} {word}"
    return [(text, "the same" if wanted else "a different")]


def _relations(scene: Scene, rng: random.Random) -> list[Cloze]:
    found = []
    pair = _two_named(scene, rng)
    if pair:
        a, a_kind, b, b_kind = pair
        directions = [d for d in DIRECTIONS if stands(a, d, b)]
        clear = [d for d in DIRECTIONS if stands(a, d, b) != stands(b, d, a)]
        said = rng.choice(clear)
        found.append(_truth(f"{a_kind.the} lies {towards(said)} {b_kind.the}", said in directions, rng))
        true = rng.choice(directions)
        if true.endswith("of"):
            found.append((f"{a_kind.the} lies to the {MASK} of {b_kind.the}", true.split()[0]))
        else:
            found.append((f"in height {a_kind.the} lies {MASK} {b_kind.the}", true))
    return found + _neighbours(scene, rng)


def _neighbours(scene: Scene, rng: random.Random) -> list[Cloze]:
    """What is the only object on one side of a named object?"""
    found = []
    for thing, kinds in _named(scene):
        for direction in DIRECTIONS:
            others = beyond(scene, direction, thing)
            if len(others) == 1:
                attribute = rng.choice(("colour", "shape", "shape", "colour", "size", "texture"))
                value = str(getattr(others[0], attribute))
                head = f"seen {towards(direction)} {rng.choice(kinds).the} :"
                text = f"{head} a {MASK}" if attribute == "shape" else f"{head} something {MASK}"
                found.append((text, value))
    return rng.sample(found, min(3, len(found)))


def _quarters(scene: Scene, rng: random.Random) -> list[Cloze]:
    found = []
    named = _named(scene)
    for thing, kinds in rng.sample(named, min(2, len(named))):
        found.append((rng.choice(_QUARTER_TEXTS).format(the=rng.choice(kinds).the, m=MASK), quarter(thing)))
    alone = [t for t in scene.objects if sum(quarter(o) == quarter(t) for o in scene.objects) == 1]
    if alone:
        thing = rng.choice(alone)
        attribute = rng.choice(("colour", "shape", "size", "texture"))
        noun = f"a {MASK}" if attribute == "shape" else f"something {MASK}"
        found.append((f"alone in the {quarter(thing)} quarter sits {noun}", str(getattr(thing, attribute))))
    return found


def _numbers_of_pair(left: Scene, right: Scene, rng: random.Random) -> list[Cloze]:
    found = []
    for side, scene in (("left", left), ("right", right)):
        kind, number = pick_by_count(rng, scene, kinds_of_form(rng.choice(_COUNTABLE), False), most=6)
        text = rng.choice(("the {s} picture has {m} {p}", "{p} in the {s} picture : {m}"))
        found.append((text.format(s=side, m=MASK, p=kind.plural), str(number)))
    kind = rng.choice(kinds_of_form(rng.choice((("shape",), ("colour",))), False))
    total = count(left, kind) + count(right, kind)
    found.append((f"taken together the pictures have {MASK} {kind.plural}", str(total)))
    said = total if rng.random() < 0.5 else rng.choice([n for n in range(5) if n != total])
    if said < len(NUMBER_WORDS):
        found.append(_judge(f"taken together the pictures have {kind.counted(said)}", said == total, rng))
    return found


def _presence_in_pair(left: Scene, right: Scene, rng: random.Random) -> list[Cloze]:
    forms: dict[str, Callable[[bool, bool], bool]] = {
        "both pictures show {}": lambda a, b: a and b,
        "neither picture shows {}": lambda a, b: not (a or b),
        "only one picture shows {}": lambda a, b: a != b,
        "some picture shows {}": lambda a, b: a or b,
        "{} lies in the left picture": lambda a, b: a,
        "{} lies in the right picture": lambda a, b: b,
    }
    found = []
    for text in rng.sample(list(forms), 4):
        wanted = rng.random() < 0.5
        kinds = kinds_of_form(rng.choice(_MENTIONS[:3]), False)
        fitting = [k for k in kinds if forms[text](count(left, k) > 0, count(right, k) > 0) == wanted]
        if fitting:
            found.append(_judge(text.format(rng.choice(fitting).any), wanted, rng))
    return found


def _comparison_of_pair(left: Scene, right: Scene, rng: random.Random) -> list[Cloze]:
    kinds = [Kind(), *(k for form in _COUNTABLE for k in kinds_of_form(form, False))]
    unequal = [k for k in kinds if count(left, k) != count(right, k)]
    if not unequal:
        return []
    kind = rng.choice(unequal)
    more = "left" if count(left, kind) > count(right, kind) else "right"
    said = rng.choice(("left", "right"))
    other = "right" if said == "left" else "left"
    return [
        (f"more {kind.plural} are in the {MASK} picture", more),
        _judge(f"the {said} picture has more {kind.plural} than the {other} one", said == more, rng),
    ]


def _attribute_in_pair(left: Scene, right: Scene, rng: random.Random) -> list[Cloze]:
    side, scene = rng.choice((("left", left), ("right", right)))
    attribute = rng.choice(ATTRIBUTES)
    named = _named(scene, without=(attribute,))
    if not named:
        return []
    thing, kinds = rng.choice(named)
    value = str(getattr(thing, attribute))
    said = value if rng.random() < 0.5 else rng.choice([v for v in VALUES[attribute] if v != value])
    noun = f"a {said}" if attribute == "shape" else said
    the = rng.choice(kinds).the
    return [
        _judge(f"{the} in the {side} picture is {noun}", said == value, rng),
        (f"{the} in the {side} picture is {'a ' * (attribute == 'shape')}{MASK}", value),
    ]


def _judge(statement: str, is_true: bool, rng: random.Random) -> Cloze:
    """Truth of a statement about two pictures, as yes/no or as true/false."""
    if rng.random() < 0.5:
        return _truth(statement, is_true, rng)
    text = rng.choice(("it is {m} that {s}", "{s} , which is {m}"))
    return text.format(m=MASK, s=statement), "true" if is_true else "false"


KINDS_OF_PICTURES = (_attributes, _is_attribute, _exists, _counts, _compares, _same, _relations, _quarters)
_EASY = (_attributes, _is_attribute, _exists)
KINDS_OF_PAIRS = (_numbers_of_pair, _presence_in_pair, _comparison_of_pair, _attribute_in_pair)
