"""Statements about two pictures in the style of NLVR2."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mtvl.data.miniworld.grammar import DIRECTIONS, Kind, count, kinds_of_form, stands, towards
from mtvl.data.miniworld.scene import Scene, Thing

Pair = tuple[Scene, Scene]


@dataclass(frozen=True)
class Statement:
    """A sentence about a left and a right picture and what makes it true. `form` names its pattern."""

    form: str
    text: str
    holds: Callable[[Scene, Scene], bool]
    kinds: tuple[Kind, ...]

    def is_held_out(self, pair: Pair) -> bool:
        """True when the words name a held-out composition or one of the objects meant is one."""
        meant: list[Thing] = [t for scene in pair for t in scene.objects if any(k.matches(t) for k in self.kinds)]
        return any(k.is_held_out for k in self.kinds) or any(t.is_held_out for t in meant if self.kinds != (Kind(),))


_FORMS = (
    ("shape",),
    ("colour",),
    ("colour", "shape"),
    ("size", "shape"),
    ("texture", "shape"),
    ("texture",),
    ("size",),
)
_PLAIN_FORMS = (("shape",), ("colour",), ("texture",), ("size",))


def _kind(rng: random.Random, with_held_out: bool, forms: Sequence[tuple[str, ...]] = _FORMS) -> Kind:
    return rng.choice(kinds_of_form(rng.choice(forms), with_held_out))


def _side_counts(rng: random.Random, with_held_out: bool) -> Statement:
    kind, side, number = _kind(rng, with_held_out, _PLAIN_FORMS), rng.randrange(2), rng.choice((1, 1, 2, 2, 3))
    name = ("left", "right")[side]
    if rng.random() < 0.5:
        text = f"the {name} image contains exactly {kind.counted(number)}."
        return Statement("exactly", text, lambda a, b: count((a, b)[side], kind) == number, (kind,))
    text = f"there are at least {kind.counted(number)} in the {name} image."
    if number == 1:
        text = f"there is at least {kind.counted(1)} in the {name} image."
    return Statement("at least", text, lambda a, b: count((a, b)[side], kind) >= number, (kind,))


def _total(rng: random.Random, with_held_out: bool) -> Statement:
    kind, number = _kind(rng, with_held_out, _PLAIN_FORMS), rng.choice((1, 2, 2, 3, 3, 4))
    text = rng.choice(("the images contain a total of {}.", "the two images show {} in all."))
    return Statement(
        "total", text.format(kind.counted(number)), lambda a, b: count(a, kind) + count(b, kind) == number, (kind,)
    )


def _both(rng: random.Random, with_held_out: bool) -> Statement:
    kind = _kind(rng, with_held_out, _PLAIN_FORMS)
    text = rng.choice(("each image contains {}.", "there is {} in both images.")).format(kind.any)
    return Statement("both", text, lambda a, b: count(a, kind) > 0 and count(b, kind) > 0, (kind,))


def _one_of(rng: random.Random, with_held_out: bool) -> Statement:
    kind = _kind(rng, with_held_out)
    text = rng.choice(("exactly one of the images contains {}.", "only one image includes {}.")).format(kind.any)
    return Statement("one of", text, lambda a, b: (count(a, kind) > 0) != (count(b, kind) > 0), (kind,))


def _any(rng: random.Random, with_held_out: bool) -> Statement:
    kind = _kind(rng, with_held_out)
    if rng.random() < 0.5:
        text = f"at least one image contains {kind.any}."
        return Statement("any", text, lambda a, b: count(a, kind) > 0 or count(b, kind) > 0, (kind,))
    text = f"neither image contains {kind.any}."
    return Statement("neither", text, lambda a, b: not (count(a, kind) or count(b, kind)), (kind,))


def _in_side(rng: random.Random, with_held_out: bool) -> Statement:
    kind, side = _kind(rng, with_held_out), rng.randrange(2)
    text = f"the {('left', 'right')[side]} image includes {kind.any}."
    return Statement("in side", text, lambda a, b: count((a, b)[side], kind) > 0, (kind,))


def _more(rng: random.Random, with_held_out: bool) -> Statement:
    kind = Kind() if rng.random() < 0.3 else _kind(rng, with_held_out, _PLAIN_FORMS)
    first, second = rng.choice((("left", "right"), ("right", "left")))
    word = rng.choice(("more", "fewer"))
    sign = 1 if (first == "left") == (word == "more") else -1
    text = f"there are {word} {kind.plural} in the {first} image than in the {second} image."
    return Statement("more", text, lambda a, b: sign * (count(a, kind) - count(b, kind)) > 0, (kind,))


def _equal(rng: random.Random, with_held_out: bool) -> Statement:
    kind = Kind() if rng.random() < 0.3 else _kind(rng, with_held_out, _PLAIN_FORMS)
    text = f"both images contain the same number of {kind.plural}."
    return Statement("equal", text, lambda a, b: count(a, kind) == count(b, kind), (kind,))


def _relation(rng: random.Random, with_held_out: bool) -> Statement:
    a_kind, b_kind = rng.sample([k for form in _PLAIN_FORMS[:2] for k in kinds_of_form(form, with_held_out)], 2)
    direction, where = rng.choice(DIRECTIONS), rng.choice(("in the left image", "in the right image", "in an image"))
    text = f"{where}, {a_kind.any} is {towards(direction)} {b_kind.any}."

    def shows(scene: Scene) -> bool:
        return any(
            a_kind.matches(x) and b_kind.matches(y) and stands(x, direction, y)
            for x in scene.objects
            for y in scene.objects
        )

    checks: dict[str, Callable[[Scene, Scene], bool]] = {
        "in the left image": lambda a, b: shows(a),
        "in the right image": lambda a, b: shows(b),
        "in an image": lambda a, b: shows(a) or shows(b),
    }
    return Statement("relation", text, checks[where], (a_kind, b_kind))


_MAKERS = (_side_counts, _side_counts, _total, _both, _one_of, _any, _in_side, _in_side, _more, _equal, _relation)
_TRIES = 4000


def random_statement(rng: random.Random, with_held_out: bool) -> Statement:
    """One statement of any form, true or false."""
    return rng.choice(_MAKERS)(rng, with_held_out)


def balanced_statements(
    pairs: Sequence[Pair], number: int, rng: random.Random, with_held_out: bool, used: Counter[str]
) -> list[tuple[Statement, list[bool]]]:
    """`number` different statements, each true for exactly half of `pairs`, with its truth for every pair.

    `used` counts how often a form was taken so far: rare forms are tried first, or those that are easily halved would
    crowd out the others.
    """
    found: list[tuple[Statement, list[bool]]] = []
    texts: set[str] = set()
    for attempt in range(_TRIES):
        statement = random_statement(rng, with_held_out)
        patience = attempt // 12  # wait a while for a form that is behind
        if statement.text in texts or used[statement.form] > min(used.values(), default=0) + patience:
            continue
        truths = [statement.holds(*pair) for pair in pairs]
        if 2 * sum(truths) == len(truths):
            found.append((statement, truths))
            texts.add(statement.text)
            used[statement.form] += 1
            if len(found) == number:
                return found
    raise RuntimeError(f"no {number} statements halve these {len(pairs)} pairs of pictures")
