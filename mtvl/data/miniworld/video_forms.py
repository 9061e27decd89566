"""What can be said of an episode: references to its actors, ways between quarters, who takes part in an event.

Everything that both the benchmark texts and the pretraining texts lean on; no wording of either.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from mtvl.data.miniworld.episode import MOVES, Actor, Episode, Event
from mtvl.data.miniworld.grammar import Kind, kinds_of_form
from mtvl.data.miniworld.scene import COLOURS, HELD_OUT, SHAPES

NAMES = ("Max", "Ben", "Leo", "Tim", "Sam", "Kim", "Mia", "Zoe", "Eva", "Lou")  # of objects
SPEAKERS = ("Ann", "Bob", "Joe", "Sue", "Amy", "Dan")
# Shapes and colours differ inside an episode, so a form with either of them names one actor.
MENTIONS = (("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("texture", "shape"), ("size", "colour"))


def kind_of_actor(actor: Actor, names: tuple[str, ...] = ("colour", "shape")) -> Kind:
    """The kind that mentions the attributes `names` of `actor`."""
    return _kind(names, tuple(getattr(actor, name) for name in names))


@functools.cache  # a few hundred kinds, made millions of times
def _kind(names: tuple[str, ...], values: tuple[str, ...]) -> Kind:
    return Kind(**dict(zip(names, values, strict=True)))


def refer(actor: Actor, rng: random.Random, without: Sequence[str] = (), with_held_out: bool = True) -> Kind:
    """A reference to `actor` that mentions none of `without`, and no held-out pair unless `with_held_out`."""
    hidden = () if with_held_out or not actor.is_held_out else ("colour", "shape")
    forms = [f for f in MENTIONS if not set(f) & set(without) and f != hidden] if without or hidden else MENTIONS
    return kind_of_actor(actor, rng.choice(forms))


def absent_kinds(episode: Episode, form: tuple[str, ...], with_held_out: bool) -> list[Kind]:
    """Kinds of `form` that share neither colour nor shape with any actor: nobody could mean an actor by them."""
    colours, shapes = {a.colour for a in episode.actors}, {a.shape for a in episode.actors}
    kinds = kinds_of_form(form, with_held_out)
    return [kind for kind in kinds if kind.colour not in colours and kind.shape not in shapes]


def way(start: int, end: int) -> str:
    """The direction from quarter `start` to quarter `end` when they lie side by side, "" otherwise."""
    step = end // 2 - start // 2, end % 2 - start % 2
    if min(start, end) < 0:
        return ""
    return next((name for name, move in MOVES.items() if move == step), "")


def way_of(episode: Episode, actor: int, tick: int) -> str:
    """The direction in which `actor` goes between `tick` and the next one, "" when it goes diagonally or not at all."""
    return way(episode.places[tick][actor], episode.places[tick + 1][actor])


def changes(episode: Episode, actor: int) -> list[int]:
    """Ticks after which `actor` goes from one quarter to another, whether by itself or pushed or swapped."""
    pairs = list(zip(episode.places, episode.places[1:], strict=False))
    return [tick for tick, (a, b) in enumerate(pairs) if a[actor] != b[actor] and min(a[actor], b[actor]) >= 0]


def taking_part(event: Event) -> tuple[int, ...]:
    """The actors that change in `event`, the acting one first."""
    return (event.actor,) if event.other < 0 else (event.actor, event.other)


def is_present(episode: Episode, actor: int, tick: int) -> bool:
    """True while `actor` stands in the picture; a negative `tick` counts from the end."""
    return episode.places[tick][actor] >= 0


def is_told_once(episode: Episode, event: Event) -> bool:
    """True when the clause of `event` fits no other event."""
    same = [e for e in episode.events if e.kind == event.kind and set(taking_part(e)) == set(taking_part(event))]
    # "moved" might be understood of what is pushed or swapped
    return len(same) == 1 and (event.kind != "move" or len(changes(episode, event.actor)) == 1)


def joins_held_out(value: str, words: Sequence[str]) -> bool:
    """True when `value` makes a held-out composition with one of `words` ("red" with "heart", either way round)."""
    if value in COLOURS:
        return any((value, word) in HELD_OUT for word in words)
    return value in SHAPES and any((word, value) in HELD_OUT for word in words)
