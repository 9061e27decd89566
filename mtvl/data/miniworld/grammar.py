"""Words for objects and the facts that sentences are made of: kinds, unique references, directions, counts.

Texts use American spelling ("color"), as the benchmarks do.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mtvl.data.miniworld.scene import COLOURS, HELD_OUT, LATTICE, SHAPES, SIZES, TEXTURES, Scene, Thing

VALUES = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES}
ATTRIBUTES = tuple(VALUES)
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
DIRECTIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
_PLURALS = {"cross": "crosses"}


@dataclass(frozen=True)
class Kind:
    """A description such as "small red star"; an empty attribute is not mentioned, an empty shape reads "object"."""

    size: str = ""
    texture: str = ""
    colour: str = ""
    shape: str = ""

    def matches(self, thing: Thing) -> bool:
        """True when `thing` has every attribute that is mentioned."""
        return (
            self.colour in ("", thing.colour)
            and self.shape in ("", thing.shape)
            and self.size in ("", thing.size)
            and self.texture in ("", thing.texture)
        )

    @property
    def is_held_out(self) -> bool:
        """True when the words name a held-out pair of colour and shape."""
        return (self.colour, self.shape) in HELD_OUT

    @functools.cached_property
    def words(self) -> str:
        """Singular without article: "small red star"."""
        return " ".join(w for w in (self.size, self.texture, self.colour, self.shape or "object") if w)

    @functools.cached_property
    def plural(self) -> str:
        """Plural without article: "small red stars"."""
        head, _, noun = self.words.rpartition(" ")
        noun = _PLURALS.get(noun, noun + "s")
        return f"{head} {noun}" if head else noun

    @property
    def any(self) -> str:
        """With the indefinite article: "a small red star"."""
        return f"{'an' if self.words[0] in 'aeiou' else 'a'} {self.words}"

    @property
    def the(self) -> str:
        """With the definite article: "the small red star"."""
        return f"the {self.words}"

    def counted(self, number: int) -> str:
        """With a number word: "one red star", "two red stars", "no red stars"."""
        return f"{NUMBER_WORDS[number]} {self.words if number == 1 else self.plural}"

    @functools.cached_property
    def attributes(self) -> dict[str, str]:
        """The attributes that are mentioned."""
        return {name: getattr(self, name) for name in ATTRIBUTES if getattr(self, name)}


def kind_of(thing: Thing, names: Sequence[str] = ("size", "texture", "colour", "shape")) -> Kind:
    """The kind that mentions the attributes `names` of `thing`."""
    return _kind(tuple(names), tuple(getattr(thing, name) for name in names))


@functools.cache  # a few hundred kinds, made millions of times
def _kind(names: tuple[str, ...], values: tuple[str, ...]) -> Kind:
    return Kind(**dict(zip(names, values, strict=True)))


def count(scene: Scene, kind: Kind) -> int:
    """Number of objects of `kind`."""
    return sum(kind.matches(thing) for thing in scene.objects)


def only(scene: Scene, kind: Kind) -> Thing | None:
    """The single object of `kind`, or None when there are none or several."""
    found = [thing for thing in scene.objects if kind.matches(thing)]
    return found[0] if len(found) == 1 else None


# From short to long; size or texture alone never names an object.
_REFERENCE_FORMS = (
    ("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("texture", "shape"), ("size", "colour"),
    ("texture", "colour"), ("size", "colour", "shape"), ("texture", "colour", "shape"),
)  # fmt: skip


def references(scene: Scene, thing: Thing, without: Sequence[str] = ()) -> list[Kind]:
    """Kinds that only `thing` satisfies, short ones first; attributes in `without` are not mentioned.

    A longer form is left out when one of its parts already names the object.
    """
    forms: list[tuple[str, ...]] = []
    for form in _naming_forms(scene)[scene.objects.index(thing)]:
        if not any(name in without for name in form) and not any(set(shorter) < set(form) for shorter in forms):
            forms.append(form)
    return [kind_of(thing, form) for form in forms]


@functools.lru_cache(maxsize=256)  # the same scene is asked many things in a row
def _naming_forms(scene: Scene) -> tuple[list[tuple[str, ...]], ...]:
    """For every object the forms that tell it from all others."""
    naming: tuple[list[tuple[str, ...]], ...] = tuple([] for _ in scene.objects)
    for form in _REFERENCE_FORMS:
        values = [tuple(getattr(thing, name) for name in form) for thing in scene.objects]
        for forms, value in zip(naming, values, strict=True):
            if values.count(value) == 1:
                forms.append(form)
    return naming


@functools.lru_cache(maxsize=256)
def named_things(scene: Scene, without: tuple[str, ...] = ()) -> tuple[tuple[Thing, tuple[Kind, ...]], ...]:
    """Objects that have at least one unique reference, with all of them."""
    pairs = [(thing, tuple(references(scene, thing, without))) for thing in scene.objects]
    return tuple((thing, kinds) for thing, kinds in pairs if kinds)


def stands(a: Thing, direction: str, b: Thing) -> bool:
    """True when `a` is left of / right of / above / below `b` (by columns and rows of the lattice)."""
    return {"left of": a.col < b.col, "right of": a.col > b.col, "above": a.row < b.row, "below": a.row > b.row}[
        direction
    ]


def beyond(scene: Scene, direction: str, thing: Thing) -> list[Thing]:
    """All objects that are `direction` (say, left of) `thing`."""
    return [other for other in scene.objects if stands(other, direction, thing)]


def quarter(thing: Thing) -> str:
    """The quarter of the picture that holds `thing`, one of QUARTERS."""
    half = LATTICE // 2
    return f"{'top' if thing.row < half else 'bottom'} {'left' if thing.col < half else 'right'}"


def towards(direction: str) -> str:
    """A direction as a phrase before a noun: "to the left of", "above"."""
    return f"to the {direction}" if direction.endswith("of") else direction


@functools.cache
def kinds_of_form(form: tuple[str, ...], with_held_out: bool) -> tuple[Kind, ...]:
    """Every kind that mentions exactly the attributes `form`."""
    kinds = [Kind()]
    for name in form:
        kinds = [replace(kind, **{name: value}) for kind in kinds for value in VALUES[name]]
    return tuple(kind for kind in kinds if with_held_out or not kind.is_held_out)


def pick_by_count(rng: random.Random, scene: Scene, kinds: Sequence[Kind], most: int = 4) -> tuple[Kind, int]:
    """A kind and its number, drawn so that every number that occurs is equally likely."""
    by_count: dict[int, list[Kind]] = {}
    for kind in kinds:
        by_count.setdefault(count(scene, kind), []).append(kind)
    number = rng.choice(sorted(n for n in by_count if n <= most))
    return rng.choice(by_count[number]), number
