"""The whole of an episode in words, for pretraining: where everything stands, what happens, where everything ends."""

from __future__ import annotations

import random

from mtvl.data.miniworld.episode import Episode, Event
from mtvl.data.miniworld.video_forms import kind_of_actor

_ORDER = ("one", "two", "three", "four")
_FORMS = (("colour", "shape"), ("size", "colour", "shape"), ("texture", "colour", "shape"))


def story(episode: Episode, rng: random.Random) -> str:
    """ "at the start : red star top left , ... event one : the red star moved down , now bottom left ; ... ".

    Every word but the order follows from what is seen. No held-out composition occurs outside the test split.
    """
    names = [kind_of_actor(actor, rng.choice(_FORMS)).words for actor in episode.actors]
    parts = [f"at the start : {_standing(episode, names, 0)}"]
    for number, event in enumerate(episode.events):
        parts.append(f"event {_ORDER[number]} : {_told(episode, names, event)}")
    parts.append(f"in the end : {_standing(episode, names, episode.ticks - 1)}")
    return " ; ".join(parts)


def _standing(episode: Episode, names: list[str], tick: int) -> str:
    found = [(place, name) for place, name in zip(episode.places[tick], names, strict=True) if place >= 0]
    return " , ".join(f"{name} {episode.quarter(names.index(name), tick)}" for _, name in sorted(found))


def _told(episode: Episode, names: list[str], event: Event) -> str:
    actor, after = names[event.actor], event.tick + 1
    if event.kind == "vanish":
        return f"the {actor} vanished from {episode.quarter(event.actor, event.tick)}"
    place = episode.quarter(event.actor, after)
    if event.kind == "appear":
        return f"the {actor} appeared {place}"
    if event.kind == "move":
        return f"the {actor} moved {event.direction} , now {place}"
    other = f"the {names[event.other]}"
    if event.kind == "push":
        return f"the {actor} pushed {other} {event.direction} , now {place} and {episode.quarter(event.other, after)}"
    return f"the {actor} swapped with {other} , now {place} and {episode.quarter(event.other, after)}"
