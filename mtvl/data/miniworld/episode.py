"""Episodes of the miniworld: a few objects that appear, move, push, swap and vanish, one event at a time.

Time is counted in ticks of 1.5 seconds, the distance of the benchmarks' frame features. At the middle of a tick nothing
moves, and the picture is a plain `Scene`; an event fills the passage from one tick to the next. An object always stands
in one of the four quarters of the picture, no two in the same one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from mtvl.data.miniworld.grammar import QUARTERS
from mtvl.data.miniworld.scene import (
    COLOURS,
    HELD_OUT,
    LATTICE,
    NUM_RAMPS,
    PICTURE_PIXELS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    Scene,
    Thing,
)
from mtvl.errors import ConfigError, near_names

TICK_SECONDS = 1.5
MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows and columns of quarters
EVENTS = ("move", "push", "swap", "appear", "vanish")
_HELD_OUT_SHARE = 0.15  # per object of the test split
_QUARTER_PIXELS = PICTURE_PIXELS // 2
_JITTER_PIXELS = {"small": 5, "large": 2}
_PASSAGE = (0.2, 0.8)  # share of the passage from tick to tick in which an event is seen


@dataclass(frozen=True)
class Actor:
    """An object of an episode. `row`/`col` (0 or 1) is its lattice cell inside whatever quarter it stands in."""

    colour: str
    shape: str
    size: str
    texture: str
    row: int
    col: int
    dx: int = 0
    dy: int = 0

    @property
    def is_held_out(self) -> bool:
        """True when the pair (colour, shape) occurs in the test split only."""
        return (self.colour, self.shape) in HELD_OUT


@dataclass(frozen=True)
class Event:
    """What happens between the middles of `tick` and `tick + 1`.

    `actor` is the object that acts, `other` the one that is pushed or swapped with (-1: none). `direction` is where
    the actor moves, or where the pushed one goes ("" for the other kinds).
    """

    kind: str
    tick: int
    actor: int
    other: int = -1
    direction: str = ""

    @property
    def seconds(self) -> float:
        """The middle of the passage."""
        return (self.tick + 1) * TICK_SECONDS


@dataclass(frozen=True)
class Episode:
    """`places[tick][actor]` is an index into QUARTERS, or -1 while the object is not there. Events in order of time."""

    actors: tuple[Actor, ...]
    places: tuple[tuple[int, ...], ...]
    events: tuple[Event, ...]
    light: tuple[int, int, int] = (250, 250, 250)
    shade: tuple[int, int, int] = (225, 225, 225)
    ramp: int = 0

    @property
    def ticks(self) -> int:
        """Number of ticks, each TICK_SECONDS long."""
        return len(self.places)

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.ticks * TICK_SECONDS

    def quarter(self, actor: int, tick: int) -> str:
        """Name of the quarter in which `actor` stands at `tick`, "" while it is not there."""
        place = self.places[tick][actor]
        return QUARTERS[place] if place >= 0 else ""

    def scene(self, tick: int) -> Scene:
        """The picture at the middle of `tick`, objects in reading order."""
        found = []
        for actor, place in zip(self.actors, self.places[tick], strict=True):
            if place >= 0:
                found.append(_thing(actor, place))
        return Scene(tuple(sorted(found, key=lambda t: (t.row, t.col))), self.light, self.shade, self.ramp)

    def scene_at(self, seconds: float) -> Scene:
        """The picture at any moment: between ticks moving objects are on their way, others are there or not."""
        position = min(max(seconds / TICK_SECONDS - 0.5, 0.0), self.ticks - 1.0)
        tick = int(position)
        low, high = _PASSAGE
        share = min(1.0, max(0.0, (position - tick - low) / (high - low)))
        if tick + 1 >= self.ticks or share == 0.0:
            return self.scene(tick)
        if share == 1.0:
            return self.scene(tick + 1)
        things = []
        for actor, start, end in zip(self.actors, self.places[tick], self.places[tick + 1], strict=True):
            if start >= 0 and end >= 0:
                rows, cols = (end // 2 - start // 2, end % 2 - start % 2)
                thing = _thing(actor, start)
                shift = round(share * _QUARTER_PIXELS)
                things.append(replace(thing, dx=thing.dx + cols * shift, dy=thing.dy + rows * shift))
            elif (start >= 0 and share < 0.5) or (end >= 0 and share >= 0.5):
                things.append(_thing(actor, max(start, end)))
        return Scene(tuple(things), self.light, self.shade, self.ramp)


def _thing(actor: Actor, place: int) -> Thing:
    half = LATTICE // 2
    return Thing(
        row=place // 2 * half + actor.row, col=place % 2 * half + actor.col, colour=actor.colour, shape=actor.shape,
        size=actor.size, texture=actor.texture, dx=actor.dx, dy=actor.dy,
    )  # fmt: skip


def sample_episode(rng: random.Random, split: str, ticks: int = 8, num_events: int = 3) -> Episode:
    """Draw an episode of `split`; ConfigError for an unknown split.

    Two or three objects of different shapes and colours (so that either names them); `num_events` events with at least
    one quiet tick between them.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown miniworld split {split!r}; {near_names(split, SPLITS)}")
    if ticks < 2 * num_events + 1:
        raise ValueError(f"{num_events} events need at least {2 * num_events + 1} ticks, found {ticks}")
    actors = _sample_actors(rng, rng.choice((2, 3, 3)), split == "test")
    spare = ticks - 1 - 2 * num_events
    starts = sorted(rng.randint(0, spare) for _ in range(num_events))
    moments = [start + 2 * i for i, start in enumerate(starts)]
    while True:
        found = _play(rng, len(actors), ticks, moments)
        if found is not None:
            break
    places, events = found
    tint = rng.randint(236, 252), rng.randint(236, 252), rng.randint(236, 252)
    darker = tint[0] - rng.randint(8, 30), tint[1] - rng.randint(8, 30), tint[2] - rng.randint(8, 30)
    return Episode(actors, places, events, tint, darker, rng.randrange(NUM_RAMPS))


def _sample_actors(rng: random.Random, number: int, with_held_out: bool) -> tuple[Actor, ...]:
    actors: list[Actor] = []
    while len(actors) < number:
        if with_held_out and rng.random() < _HELD_OUT_SHARE:
            colour, shape = rng.choice(sorted(HELD_OUT))
        else:
            colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
            if (colour, shape) in HELD_OUT:
                continue
        if any(colour == a.colour or shape == a.shape for a in actors):
            continue
        size = rng.choice(SIZES)
        reach = _JITTER_PIXELS[size]
        actors.append(
            Actor(
                colour=colour, shape=shape, size=size, texture=rng.choice(TEXTURES), row=rng.randrange(2),
                col=rng.randrange(2), dx=rng.randint(-reach, reach), dy=rng.randint(-reach, reach),
            )
        )  # fmt: skip
    return tuple(actors)


def _play(
    rng: random.Random, number: int, ticks: int, moments: list[int]
) -> tuple[tuple[tuple[int, ...], ...], tuple[Event, ...]] | None:
    """One try at a story; None when an object never shows or an event has no place to happen."""
    places = list(rng.sample(range(4), number))
    for actor in range(number):
        if rng.random() < 0.3 and sum(p >= 0 for p in places) > 1:
            places[actor] = -1  # may appear later
    rows, events = [], []
    for tick in range(ticks):
        rows.append(tuple(places))
        if tick in moments:
            options = [e for kind in EVENTS for e in _options(kind, tick, places)]
            kinds = sorted({e.kind for e in options})
            if not kinds:
                return None
            kind = rng.choice(kinds)
            event = rng.choice([e for e in options if e.kind == kind])
            _apply(event, places, rng)
            events.append(event)
    seen = {actor for row in rows for actor, place in enumerate(row) if place >= 0}
    return (tuple(rows), tuple(events)) if len(seen) == number else None


def _next(place: int, direction: str) -> int:
    """The quarter beside `place` in `direction`, or -1 outside the picture."""
    row, col = place // 2 + MOVES[direction][0], place % 2 + MOVES[direction][1]
    return row * 2 + col if row in (0, 1) and col in (0, 1) else -1


def _options(kind: str, tick: int, places: list[int]) -> list[Event]:
    """All events of a kind that are possible now."""
    there = [i for i, place in enumerate(places) if place >= 0]
    found = []
    if kind == "move":
        for i in there:
            found += [Event("move", tick, i, -1, d) for d in MOVES if _next(places[i], d) not in (-1, *places)]
    elif kind == "push":
        for i in there:
            for j in there:
                beside = [d for d in MOVES if _next(places[i], d) == places[j]]
                if i != j and beside:
                    goals = [d for d in MOVES if _next(places[j], d) not in (-1, *places)]
                    found += [Event("push", tick, i, j, d) for d in goals]
    elif kind == "swap":
        found = [Event("swap", tick, i, j) for i in there for j in there if i < j]
    elif kind == "appear":
        found = [Event("appear", tick, i) for i, place in enumerate(places) if place < 0]
    elif kind == "vanish":
        found = [Event("vanish", tick, i) for i in there if len(there) > 1]
    return found


def _apply(event: Event, places: list[int], rng: random.Random) -> None:
    actor, other = event.actor, event.other
    if event.kind == "move":
        places[actor] = _next(places[actor], event.direction)
    elif event.kind == "push":
        places[actor], places[other] = places[other], _next(places[other], event.direction)
    elif event.kind == "swap":
        places[actor], places[other] = places[other], places[actor]
    elif event.kind == "appear":
        places[actor] = rng.choice([p for p in range(4) if p not in places])
    elif event.kind == "vanish":
        places[actor] = -1


def episode_at(seed: int, split: str, index: int, ticks: int = 8, num_events: int = 3) -> Episode:
    """Episode number `index` of the endless stream (`seed`, `split`, `ticks`): the same everywhere, in any order."""
    return sample_episode(random.Random(f"miniworld/episode/{seed}/{split}/{ticks}/{index}"), split, ticks, num_events)
