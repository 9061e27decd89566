"""Masked statements about one episode, form by form: who did what, where to, when, how often, and is it true."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mtvl.data.miniworld.episode import Episode, Event
from mtvl.data.miniworld.grammar import QUARTERS
from mtvl.data.miniworld.language import MASK, Cloze
from mtvl.data.miniworld.video_forms import (
    MENTIONS,
    changes,
    is_present,
    is_told_once,
    kind_of_actor,
    refer,
    taking_part,
    way_of,
)

PAST = {"move": "moved", "push": "pushed", "swap": "swapped", "appear": "appeared", "vanish": "vanished"}
STAYED = "stayed"
_ORDINALS = ("first", "second", "third", "fourth")
_NUMBERS = ("one", "two", "three", "four")
_ATTRIBUTES = ("colour", "colour", "shape", "shape", "size", "texture")


@dataclass(frozen=True)
class Telling:
    """An episode with the names that some of its actors go by."""

    episode: Episode
    rng: random.Random
    names: dict[int, str] = field(default_factory=dict)

    def the(self, actor: int, without: Sequence[str] = ()) -> str:
        """A reference to `actor`: its name when it has one, or a description."""
        return self.names.get(actor) or refer(self.episode.actors[actor], self.rng, without, False).the

    def value(self, actor: int) -> tuple[str, str]:
        """A masked noun phrase and the attribute of `actor` that fills it."""
        attribute = self.rng.choice(_ATTRIBUTES)
        text = f"a {MASK}" if attribute == "shape" else f"something {MASK}"
        return text, str(getattr(self.episode.actors[actor], attribute))

    def when(self, number: int) -> str:
        """Words that say which event is meant, "" now and then for an only one."""
        last = len(self.episode.events) - 1
        options = [f"event {_NUMBERS[number]} :", f"{_ORDINALS[number]} ,"]
        if number == last > 0:
            options.append("last ,")
        return self.rng.choice(options if last else [*options, ""])

    def which(self, number: int) -> str:
        """As `when`, and often "" for an event that is the only one of its kind."""
        kinds = [event.kind for event in self.episode.events]
        is_clear = kinds.count(kinds[number]) == 1 and kinds[number] != "move"  # what is pushed moves as well
        return "" if is_clear and self.rng.random() < 0.6 else self.when(number)

    @property
    def numbered(self) -> list[tuple[int, Event]]:
        """The events with their numbers."""
        return list(enumerate(self.episode.events))


def verb_phrase(telling: Telling, event: Event) -> str:
    """What the acting object did: "pushed the star"."""
    verb = PAST[event.kind]
    if event.kind == "push":
        return f"{verb} {telling.the(event.other)}"
    return f"{verb} with {telling.the(event.other)}" if event.kind == "swap" else verb


def clause(telling: Telling, event: Event) -> str:
    """Who did what: "the heart pushed the star"."""
    return f"{telling.the(event.actor)} {verb_phrase(telling, event)}"


def _is_lasting(episode: Episode, actor: int, tick: int) -> bool:
    """True when `actor` stands in the same quarter before and after the passage."""
    return episode.places[tick][actor] == episode.places[tick + 1][actor] >= 0


def _kinds(telling: Telling) -> list[Cloze]:
    """What did a named object do, or did it do nothing?"""
    found = []
    for number, event in telling.numbered:
        actor = event.actor if event.kind != "swap" else telling.rng.choice(taking_part(event))
        text = telling.rng.choice(("{w} {the} {m}", "{w} what {the} did : {m}"))
        answer = PAST[event.kind]
        idle = [a for a in range(len(telling.episode.actors)) if _is_lasting(telling.episode, a, event.tick)]
        if idle and telling.rng.random() < 0.25:
            actor, answer = telling.rng.choice(idle), STAYED
        when = telling.when(number)
        parts = [e for e in telling.episode.events if actor in taking_part(e)]
        if answer != STAYED and len(parts) == 1 and telling.rng.random() < 0.5:
            when = ""
        found.append((text.format(w=when, the=telling.the(actor), m=MASK), answer))
    return found


def _doers(telling: Telling) -> list[Cloze]:
    """Which object did it, or had it done to it?"""
    found = []
    for number, event in telling.numbered:
        masked, answer = telling.value(event.actor)
        found.append((f"{telling.which(number)} {masked} {verb_phrase(telling, event)}", answer))
        if event.kind == "push":
            masked, answer = telling.value(event.other)
            found.append((f"{telling.which(number)} {telling.the(event.actor)} pushed {masked}", answer))
            masked, answer = telling.value(event.actor)
            found.append((f"{telling.which(number)} {telling.the(event.other)} was pushed by {masked}", answer))
        elif event.kind == "swap":
            masked, answer = telling.value(event.other)
            found.append((f"{telling.which(number)} {telling.the(event.actor)} swapped with {masked}", answer))
    return found


def _directions(telling: Telling) -> list[Cloze]:
    found = []
    for number, event in telling.numbered:
        for actor in taking_part(event):
            answer = way_of(telling.episode, actor, event.tick)
            if answer:
                when = telling.when(number)
                if len(changes(telling.episode, actor)) == 1 and telling.rng.random() < 0.5:
                    when = ""
                text = telling.rng.choice(("{w} {the} went {m}", "{w} way of {the} : {m}"))
                found.append((text.format(w=when, the=telling.the(actor), m=MASK), answer))
        if event.kind == "push":
            when, who = telling.which(number), (telling.the(event.actor), telling.the(event.other))
            found.append((f"{when} {who[0]} pushed {who[1]} {MASK}", event.direction))
    return found


def _spots(telling: Telling) -> list[tuple[str, int]]:
    """Words for moments, and the tick that each means."""
    spots = [("at the start", 0), ("in the end", -1), ("at the start", 0), ("in the end", -1)]
    for number, event in telling.numbered:
        spots += [(f"before event {_NUMBERS[number]}", event.tick), (f"after event {_NUMBERS[number]}", event.tick + 1)]
    return spots


def _places(telling: Telling) -> list[Cloze]:
    episode, rng = telling.episode, telling.rng
    found = []
    for spot, tick in rng.sample(_spots(telling), 4):
        present = [a for a in range(len(episode.actors)) if is_present(episode, a, tick)]
        actor = rng.choice(present)
        text = rng.choice(("{s} {the} stood {m}", "{s} , place of {the} : {m}"))
        found.append((text.format(s=spot, the=telling.the(actor), m=MASK), episode.quarter(actor, tick)))
        actor = rng.choice(present)
        masked, answer = telling.value(actor)
        found.append((f"{spot} {masked} stood {episode.quarter(actor, tick)}", answer))
    for number, event in telling.numbered:
        if event.kind == "appear":
            answer = episode.quarter(event.actor, event.tick + 1)
            found.append((f"{telling.which(number)} {telling.the(event.actor)} appeared {MASK}", answer))
        elif event.kind == "vanish":
            answer = episode.quarter(event.actor, event.tick)
            found.append((f"{telling.which(number)} {telling.the(event.actor)} vanished , seen last {MASK}", answer))
    return found


def _orders(telling: Telling) -> list[Cloze]:
    episode, rng = telling.episode, telling.rng
    clear = [(n, e) for n, e in telling.numbered if is_told_once(episode, e)]
    found = []
    if len(clear) > 1:
        (i, a), (j, b) = rng.sample(clear, 2)
        text = rng.choice(("{a} {m} {b}", "{m} {b} , {a}"))
        word = "before" if i < j else "after"
        found.append((text.format(a=clause(telling, a), b=clause(telling, b), m=MASK), word))
        found.append((f"{clause(telling, a)} in event {MASK}", _NUMBERS[i]))
    for number, event in clear:
        for step, word in ((1, "right after"), (-1, "right before")):
            if 0 <= number + step < len(episode.events):
                other = episode.events[number + step]
                head = f"{word} {clause(telling, event)} ,"
                found.append((f"{head} {telling.the(other.actor)} {MASK}", PAST[other.kind]))
                masked, answer = telling.value(other.actor)
                found.append((f"{head} {masked} {verb_phrase(telling, other)}", answer))
    return rng.sample(found, min(5, len(found)))


def _numbers(telling: Telling) -> list[Cloze]:
    episode, rng = telling.episode, telling.rng
    spot, tick = rng.choice(_spots(telling))
    found = [(f"{spot} one could count {MASK} objects", str(sum(place >= 0 for place in episode.places[tick])))]
    actor = rng.randrange(len(episode.actors))
    found.append((f"{telling.the(actor)} changed place {MASK} times", str(len(changes(episode, actor)))))
    verb, kind = rng.choice((("appeared", "appear"), ("vanished", "vanish")))
    found.append((f"in all {MASK} objects {verb}", str(sum(e.kind == kind for e in episode.events))))
    noun, kind = rng.choice((("pushes", "push"), ("swaps", "swap")))
    found.append((f"number of {noun} : {MASK}", str(sum(e.kind == kind for e in episode.events))))
    return rng.sample(found, 3)


def _neighbours(telling: Telling) -> list[Cloze]:
    """Where one object stood seen from another, by quarters."""
    episode, rng = telling.episode, telling.rng
    found = []
    for spot, tick in rng.sample(_spots(telling), 2):
        present = [a for a in range(len(episode.actors)) if is_present(episode, a, tick)]
        if len(present) > 1:
            a, b = rng.sample(present, 2)
            (row, col), (other_row, other_col) = (divmod(episode.places[tick][x], 2) for x in (a, b))
            if col != other_col:
                word = "left" if col < other_col else "right"
                found.append((f"{spot} {telling.the(a)} stood to the {MASK} of {telling.the(b)}", word))
            if row != other_row:
                word = "above" if row < other_row else "below"
                found.append((f"{spot} {telling.the(a)} stood {MASK} {telling.the(b)}", word))
    return rng.sample(found, min(2, len(found)))


def _truth(statement: str, is_true: bool, rng: random.Random) -> Cloze:
    text = rng.choice(("{m} : {s}", "{s} ? {m}", "right or not , {s} : {m}"))
    return text.format(m=MASK, s=statement), "yes" if is_true else "no"


def _truths(telling: Telling) -> list[Cloze]:
    episode, rng = telling.episode, telling.rng
    found = []
    number, event = rng.choice(telling.numbered)
    said = event
    if rng.random() < 0.5:
        said = rng.choice([e for e in possible_events(len(episode.actors)) if not may_describe(episode, event, e)])
    found.append(_truth(f"{telling.when(number)} {clause(telling, said)}", said is event, rng))
    spot, tick = rng.choice(_spots(telling))
    actor = rng.choice([a for a in range(len(episode.actors)) if is_present(episode, a, tick)])
    place = episode.quarter(actor, tick)
    quarter = place if rng.random() < 0.5 else rng.choice([q for q in QUARTERS if q != place])
    found.append(_truth(f"{spot} {telling.the(actor)} stood {quarter}", quarter == place, rng))
    actor = rng.randrange(len(episode.actors))
    found.append(_truth(f"{spot} {telling.the(actor)} was there", is_present(episode, actor, tick), rng))
    kind = rng.choice(("appear", "vanish"))
    shown = kind_of_actor(episode.actors[actor], rng.choice(MENTIONS[:2]))
    truth = any(e.kind == kind and e.actor == actor for e in episode.events)
    found.append(_truth(f"{shown.any} {PAST[kind]}", truth, rng))
    return found


def possible_events(number: int) -> list[Event]:
    """Every event that `number` actors could be part of, whatever their places."""
    alone = [Event(kind, 0, a) for kind in ("move", "appear", "vanish") for a in range(number)]
    pairs = [(a, b) for a in range(number) for b in range(number) if a != b]
    return alone + [Event(kind, 0, a, b) for kind in ("push", "swap") for a, b in pairs]


def may_describe(episode: Episode, event: Event, said: Event) -> bool:
    """True when the clause of `said` might be taken for a true one about `event`."""
    if said.kind == "move":
        return event.tick in changes(episode, said.actor)
    is_same = (said.actor, said.other) == (event.actor, event.other)
    return said.kind == event.kind and (
        is_same or (said.kind == "swap" and set(taking_part(said)) == {event.actor, event.other})
    )


STATEMENTS: tuple[Callable[[Telling], list[Cloze]], ...] = (
    _kinds, _doers, _directions, _places, _orders, _numbers, _neighbours, _truths,
)  # fmt: skip
