"""Relations between the objects of a picture in full, for pretraining: every word of the answer is about what is seen.

Single masked statements about relations ("the star lies <mask> of the circle") hold one informative word each, and the
small language model stays at chance on them for ten thousand steps. Here one reading of a picture is asked for all
directions, all shared attributes or all numbers at once. No held-out composition is mentioned in the split "pretrain".
"""

from __future__ import annotations

import random
from collections.abc import Callable

from mtvl.data.miniworld.grammar import ATTRIBUTES, DIRECTIONS, VALUES, kind_of, named_things, stands
from mtvl.data.miniworld.scene import Scene, Thing

Asked = tuple[str, str]  # source, target
_WORDS = {"colour": "color", "shape": "shape", "size": "size", "texture": "surface"}
_FORMS = (("colour", "shape"), ("colour", "shape"), ("size", "colour", "shape"), ("texture", "colour", "shape"))


def seen_from(scene: Scene, rng: random.Random) -> Asked | None:
    """Where every other object stands as seen from one, in reading order; None when no object can be named alone."""
    return _asked(scene, "relate: seen from {}", _directions, rng)


def shared_attributes(scene: Scene, rng: random.Random) -> Asked | None:
    """What every other object has in common with one, in reading order; None when no object can be named alone."""
    return _asked(scene, "match: {}", _same, rng)


def tally(scenes: tuple[Scene, ...], rng: random.Random) -> Asked:
    """How many objects have each value of an attribute, the most frequent first; for two pictures one after the other."""
    attribute = rng.choice(ATTRIBUTES)
    sides = ("left : ", "right : ") if len(scenes) > 1 else ("",)
    found = [side + _numbers(scene, attribute) for side, scene in zip(sides, scenes, strict=True)]
    return f"tally: {_WORDS[attribute]}", " ; ".join(found)


def both(left: Scene, right: Scene, rng: random.Random) -> Asked:
    """The objects of two pictures, each in reading order."""
    sides = (f"{side} : {_names(scene, rng)}" for side, scene in (("left", left), ("right", right)))
    return "both:", " ; ".join(sides)


def _asked(scene: Scene, question: str, say: Callable[[Thing, Thing], str], rng: random.Random) -> Asked | None:
    named = [(t, [k for k in kinds if not k.is_held_out]) for t, kinds in named_things(scene)]
    named = [(t, kinds) for t, kinds in named if kinds]
    if not named or len(scene.objects) < 2:
        return None
    one, kinds = rng.choice(named)
    form = rng.choice(_FORMS)
    told = [f"{kind_of(other, form).words} {say(other, one)}" for other in scene.objects if other is not one]
    return question.format(rng.choice(kinds).the), " , ".join(told)


def _directions(other: Thing, one: Thing) -> str:
    return " ".join(d.removesuffix(" of") for d in DIRECTIONS if stands(other, d, one))


def _same(other: Thing, one: Thing) -> str:
    shared = [_WORDS[name] for name in ATTRIBUTES if getattr(other, name) == getattr(one, name)]
    return f"same {' '.join(shared)}" if shared else "differs"


def _numbers(scene: Scene, attribute: str) -> str:
    values = [getattr(thing, attribute) for thing in scene.objects]
    order = sorted(set(values), key=lambda v: (-values.count(v), VALUES[attribute].index(v)))
    return " , ".join(f"{values.count(v)} {v}" for v in order)


def _names(scene: Scene, rng: random.Random) -> str:
    form = rng.choice(_FORMS)
    return " , ".join(kind_of(thing, form).words for thing in scene.objects)
