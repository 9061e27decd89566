"""Five captions a picture, of varied wording, about the objects that catch the eye first."""

from __future__ import annotations

import random

from mtvl.data.miniworld.grammar import (
    DIRECTIONS,
    NUMBER_WORDS,
    Kind,
    count,
    kind_of,
    quarter,
    stands,
    towards,
)
from mtvl.data.miniworld.scene import COLOURS, SHAPES, Scene, Thing


def salient(scene: Scene) -> list[Thing]:
    """Objects as a viewer would name them: large before small, then in reading order."""
    return sorted(scene.objects, key=lambda t: (t.size == "small", t.row, t.col))


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """Five captions of at most 18 words, without full stop; they agree on what they name first."""
    return [
        _objects(scene, rng), _relation(scene, rng), _places(scene, rng), _group(scene, rng), _overview(scene, rng)
    ]  # fmt: skip


def _short(thing: Thing, rng: random.Random) -> Kind:
    """Colour and shape, with size or texture now and then."""
    extra = rng.choice(((), (), ("size",), ("texture",)))
    return kind_of(thing, ("colour", "shape", *extra))


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _enumerate(kinds: list[Kind]) -> str:
    """ "a red star, a blue circle and two black hearts": equal kinds are counted."""
    times = {kind: kinds.count(kind) for kind in kinds}  # a dict keeps the order of first mention
    return _join([kind.any if number == 1 else kind.counted(number) for kind, number in times.items()])


def _objects(scene: Scene, rng: random.Random) -> str:
    text = _enumerate([kind_of(t, ("colour", "shape")) for t in salient(scene)[:3]])
    return rng.choice(("{}", "a picture of {}", "an image with {}", "we see {}")).format(text)


def _relation(scene: Scene, rng: random.Random) -> str:
    first, second = salient(scene)[:2]
    direction = rng.choice([d for d in DIRECTIONS if stands(first, d, second)])
    verb = rng.choice(("is", "sits", "lies", "")).strip()
    words = [_short(first, rng).any, verb, towards(direction), _short(second, rng).any]
    return " ".join(w for w in words if w)


def _places(scene: Scene, rng: random.Random) -> str:
    first, second = salient(scene)[:2]
    text = rng.choice(("{} in the {} and {} in the {}", "{} at the {}, {} at the {}"))
    return text.format(_short(first, rng).any, quarter(first), _short(second, rng).any, quarter(second))


def _group(scene: Scene, rng: random.Random) -> str:
    """The most frequent shape or colour, or the whole number when every one occurs once."""
    kinds = [Kind(shape=s) for s in SHAPES] + [Kind(colour=c) for c in COLOURS]
    kind = max(kinds, key=lambda k: count(scene, k))
    number, total = count(scene, kind), len(scene.objects)
    first = kind_of(salient(scene)[0], ("colour", "shape"))
    if number == 1:
        return f"{NUMBER_WORDS[total]} different shapes with {first.any}"
    if number == total:
        return rng.choice(("{} and nothing else", "a group of {}")).format(kind.counted(number))
    rest = total - number
    return f"{kind.counted(number)} and {NUMBER_WORDS[rest]} other object{'s' if rest > 1 else ''}"


def _overview(scene: Scene, rng: random.Random) -> str:
    things = salient(scene)
    text = _enumerate([kind_of(t, ("size", "colour", "shape")) for t in things[:2]])
    rest = len(things) - 2
    tail = f"with {NUMBER_WORDS[rest]} more object{'s' if rest > 1 else ''}"
    return rng.choice(("{} {}", "{}, {}", "we see {} {}")).format(text, tail)
