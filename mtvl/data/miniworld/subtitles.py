"""What is said in an episode: who is called how, what somebody watches, which step comes; a part of the facts only.

An object that is talked about is drawn without regard to what happens, so that the talk alone answers no question.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtvl.data.miniworld.episode import Episode, Event
from mtvl.data.miniworld.grammar import Kind
from mtvl.data.miniworld.video_forms import NAMES, SPEAKERS, kind_of_actor, way_of

# How a video's lines describe objects: attributes that are not said can be asked for.
_TALKS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("shape",), ("shape",), ("size", "shape"), ("texture", "shape")),
    (("colour",), ("colour",), ("size", "colour")),
    (("colour", "shape"),),
)
_TALK_WEIGHTS = (4, 3, 2)
_STEP_SHARE = 0.7  # of the small talk that tells the kind of a step instead, where steps are narrated
_ORDINALS = ("first", "then", "finally", "after that")


@dataclass(frozen=True)
class Line:
    """One subtitle.

    `actor` is the object it speaks of (-1: none), `name` what it is called from now on, `step` the number of the event
    whose kind it tells (-1: none).
    """

    text: str
    start: float
    end: float
    speaker: str = ""
    actor: int = -1
    name: str = ""
    kind: Kind = Kind()
    step: int = -1

    @property
    def row(self) -> dict[str, Any]:
        """As in VALUE's subtitle files, with the leading space that they have."""
        head = f" {self.speaker} : " if self.speaker else " "
        return {"text": head + self.text, "start": self.start, "end": self.end}


@dataclass(frozen=True)
class Script:
    """The lines of a video in order of time, and the attributes by which they describe objects."""

    lines: tuple[Line, ...]
    said: frozenset[str] = frozenset()

    @property
    def told(self) -> frozenset[int]:
        """Numbers of the events whose kind a line tells: nobody should ask for it."""
        return frozenset(line.step for line in self.lines if line.step >= 0)

    @property
    def named(self) -> dict[int, int]:
        """Actor -> the line that gives it a name."""
        return {line.actor: i for i, line in enumerate(self.lines) if line.name}

    @property
    def watched(self) -> dict[int, int]:
        """Actor -> the line that points it out without a name."""
        return {line.actor: i for i, line in enumerate(self.lines) if line.actor >= 0 and not line.name}


@dataclass(frozen=True)
class Voice:
    """Wordings of one source of videos; `naming` holds {the} and {name}, `watching` {the}, `steps` {n}."""

    naming: tuple[str, ...]
    watching: tuple[str, ...]
    filling: tuple[str, ...]
    steps: Mapping[str, str] = field(default_factory=dict)  # by kind of event; empty when nobody narrates
    has_speakers: bool = False


TV = Voice(
    naming=("{the} is called {name}.", "{name} is {the}.", "I call {the} {name}."),
    watching=("watch {the} now.", "look at {the}.", "keep an eye on {the}."),
    filling=("here we go.", "this is fun.", "oh , did you see that ?"),
    has_speakers=True,
)
HOW2 = Voice(
    naming=("we give {the} the name {name}", "we name {the} {name}", "{name} is the name of {the}"),
    watching=("{the} is the important one", "the important part is {the}"),
    filling=("now comes the next step", "and that is how we do it", "take your time with this step"),
    steps={"move": "{n} something has to move", "push": "{n} we need a push", "swap": "{n} two of them trade places",
           "appear": "{n} we add something", "vanish": "{n} we take something away"},
)  # fmt: skip


def conversation(episode: Episode, rng: random.Random, voice: Voice) -> Script:
    """A line near each event: one or two names, sometimes an object to watch, else small talk."""
    forms = rng.choices(_TALKS, _TALK_WEIGHTS)[0]
    speakers = rng.sample(SPEAKERS, len(episode.events)) if voice.has_speakers else [""] * len(episode.events)
    number = 2 if rng.random() < 0.75 else 1
    actors = rng.sample(range(len(episode.actors)), number)
    plan: list[tuple[str, int]] = [("naming", actor) for actor in actors]
    plan.append(("watching", rng.randrange(len(episode.actors))) if rng.random() < 0.6 else ("filling", -1))
    plan += [("filling", -1)] * (len(episode.events) - len(plan))
    rng.shuffle(plan)
    names = rng.sample(NAMES, len(plan))
    lines = []
    for step, (event, speaker, name, (what, actor)) in enumerate(
        zip(episode.events, speakers, names, plan, strict=False)
    ):
        text = rng.choice(getattr(voice, what))
        is_step = bool(voice.steps) and what == "filling" and rng.random() < _STEP_SHARE
        if is_step:
            text = voice.steps[event.kind].format(n=_ORDINALS[min(step, len(_ORDINALS) - 1)])
        kind = kind_of_actor(episode.actors[actor], rng.choice(forms)) if actor >= 0 else Kind()
        start = round(max(0.1, event.seconds - rng.uniform(0.3, 1.3)), 2)
        end = round(min(episode.seconds, start + rng.uniform(1.2, 1.7)), 2)
        called = name if what == "naming" else ""
        lines.append(
            Line(
                text.format(the=kind.the, name=name), start, end, speaker, actor, called, kind, step if is_step else -1
            )
        )
    return Script(tuple(lines), frozenset(part for form in forms for part in form))


_HINTS = {"move": "this one has to move", "push": "give it a good push", "swap": "these two trade",
          "appear": "something is still missing", "vanish": "one of them is not needed"}  # fmt: skip


def instructions(episode: Episode, rng: random.Random) -> Script:
    """One or two lines about the only event: the action or one attribute of an object, never all of it."""
    event = episode.events[0]
    form = rng.choice((("shape",), ("colour",), ("size", "shape")))
    kind = kind_of_actor(episode.actors[_main(event)], form)
    direction = way_of(episode, _main(event), event.tick)
    options = [
        (_HINTS[event.kind], Kind()),
        (rng.choice(("now take care of {}", "next comes {}", "here we use {}")).format(kind.the), kind),
    ]
    if direction and event.kind != "swap":
        options.append((f"we need it further {direction}", Kind()))
    lines = []
    middle = event.seconds - 0.4
    for i, (text, meant) in enumerate(rng.sample(options, rng.choice((1, 1, 2)))):
        start = round(middle - rng.uniform(0.7, 1.1) + 1.6 * i, 2)
        actor = _main(event) if meant != Kind() else -1
        lines.append(Line(text, max(0.1, start), round(start + 1.4, 2), "", actor, "", meant))
    return Script(tuple(lines), frozenset(form))


def _main(event: Event) -> int:
    """The object that an instruction is about: what is pushed, not what pushes."""
    return event.other if event.kind == "push" else event.actor
