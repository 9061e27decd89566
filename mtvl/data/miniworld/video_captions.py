"""Captions of moments: several wordings for TVC, one instruction for YC2C."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mtvl.data.miniworld.episode import Episode, Event
from mtvl.data.miniworld.subtitles import Line
from mtvl.data.miniworld.video_forms import kind_of_actor, taking_part

MAX_CAPTION_WORDS = 16
_SEEN = {
    "move": ("{a} moves {to}", "{a} goes {to}", "we see {a} move {to}"),
    "push": ("{a} pushes {b} {to}", "{b} is pushed {to} by {a}", "{a} comes and pushes {b} {to}"),
    "swap": ("{a} and {b} swap places", "{a} swaps places with {b}", "{b} changes places with {a}"),
    "appear": ("{a} appears in the {q}", "now there is {a} in the {q}", "{a} comes in at the {q}"),
    "vanish": ("{a} vanishes from the {q}", "{a} in the {q} vanishes", "{a} leaves the {q}"),
}  # fmt: skip
_ORDERED = {
    "move": ("move {a} {to}", "bring {a} {to}"),
    "push": ("push {b} {to} with {a}", "use {a} to push {b} {to}"),
    "swap": ("swap {a} and {b}", "exchange {a} and {b}"),
    "appear": ("add {a} in the {q}", "put {a} in the {q}"),
    "vanish": ("remove {a} from the {q}", "take {a} from the {q}"),
}  # fmt: skip
_TOWARDS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down", "": ""}
_USUAL = 0.8  # share of the first wording of an instruction, which has a single reference


def _fill(text: str, episode: Episode, event: Event, names: dict[int, str]) -> str:
    """Put the objects of `event` into `text`: by name where there is one, else by colour and shape."""
    words = {}
    for letter, actor in zip("ab", taking_part(event), strict=False):
        kind = kind_of_actor(episode.actors[actor])
        is_news = "now there is" in text
        words[letter] = names.get(actor) or (kind.any if is_news else kind.the)
    place = episode.quarter(event.actor, event.tick + (event.kind == "appear"))
    return text.format(**words, to=_TOWARDS[event.direction], q=place)


def moment_captions(
    episode: Episode, event: Event, lines: Sequence[Line], number: int, rng: random.Random
) -> list[tuple[str, str]]:
    """`number` captions of `event` as (type, text): "v" tells what is seen, "t" what is said, "vt" both.

    `lines` are the subtitles of the moment. All captions of a moment agree on what happens.
    """
    seen = rng.sample(_SEEN[event.kind], len(_SEEN[event.kind]))
    found = [("v", _fill(seen[0], episode, event, {}))]
    both, said = _with_names(episode, event, lines, rng), _said(lines, rng)
    if number > 2:
        found += [("v", _fill(seen[1], episode, event, {})), ("vt", both)]
    extra = [("v", _fill(seen[2], episode, event, {}))]
    extra += [("vt", both)] * 2 if number <= 2 else []
    extra += [("t", said)] if said else []
    while len(found) < number:
        found.append(rng.choice(extra))
    return found


def _with_names(episode: Episode, event: Event, lines: Sequence[Line], rng: random.Random) -> str:
    """The event with the names that are heard; without any, who speaks meanwhile."""
    names = {line.actor: line.name for line in lines if line.name and line.actor in taking_part(event)}
    text = rng.choice([t for t in _SEEN[event.kind] if "now there is" not in t])
    if names:
        return _fill(text, episode, event, names)
    watching = [line for line in lines if line.actor in taking_part(event)]
    if watching:
        line = rng.choice(watching)
        return _fill(text, episode, event, {line.actor: f"the object that {line.speaker} watches"})
    speaker = rng.choice(lines).speaker if lines else "somebody"
    return f"{speaker} talks while {_fill(_SEEN[event.kind][0], episode, event, {})}"


def _said(lines: Sequence[Line], rng: random.Random) -> str:
    """What somebody says about an object, "" when nothing is said about one."""
    told = [line for line in lines if line.actor >= 0]
    if not told:
        return ""
    line = rng.choice(told)
    return (
        f"{line.speaker} calls {line.kind.the} {line.name}" if line.name else f"{line.speaker} watches {line.kind.the}"
    )


def instruction(episode: Episode, rng: random.Random) -> str:
    """The only event of a segment as an imperative sentence."""
    event = episode.events[0]
    usual, other = _ORDERED[event.kind]
    return _fill(usual if rng.random() < _USUAL else other, episode, event, {})
