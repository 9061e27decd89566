"""Wordings of the question benchmarks, and how a question on an episode is put together from mentions and templates."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtvl.data.miniworld.balance import Asked
from mtvl.data.miniworld.episode import Episode, Event
from mtvl.data.miniworld.grammar import Kind
from mtvl.data.miniworld.scene import COLOURS, SHAPES
from mtvl.data.miniworld.subtitles import Line, Script
from mtvl.data.miniworld.video_forms import kind_of_actor

ASKABLE = {"colour": COLOURS, "shape": SHAPES}  # attributes with enough values for options


@dataclass(frozen=True)
class Style:
    """Wording of one benchmark; texts hold {x} for the object asked about, {y} for another, {c} for a clause."""

    options: int
    verbs: Mapping[str, str]  # seen from the acting object, with {y} and {w}
    texts: Mapping[str, tuple[str, ...]]
    outside: str = ""  # what "where" says of an object that is not there; "" when that is not asked
    nowhere: str = ""  # what "which way" says of an object that stays


TVQA = Style(
    options=5,
    verbs={"move": "moves {w}", "push": "pushes {y}", "swap": "swaps with {y}", "appear": "appears",
           "vanish": "vanishes"},
    texts={
        "doing": ("what does {x} do?",), "doing first": ("what does {x} do first?",),
        "doing last": ("what does {x} do last?",), "doing after": ("what does {x} do right after {c}?",),
        "doing before": ("what does {x} do right before {c}?",),
        "where at the start": ("where is {x} at the start?",), "where at the end": ("where is {x} at the end?",),
        "where after": ("where is {x} when {c}?",), "way": ("which way does {x} go?",),
        "order first": ("what happens first?",), "order last": ("what happens last?",),
        "order after": ("what happens right after {c}?",), "order before": ("what happens right before {c}?",),
        "looks": ("what {a} is {x}?",),
        "who appear": ("which object appears?", "what {a} is the object that appears?"),
        "who vanish": ("which object vanishes?", "what {a} is the object that vanishes?"),
        "who pushes": ("which object pushes {y}?", "what {a} is the object that pushes {y}?"),
        "who is pushed": ("which object does {y} push?", "what {a} is the object that {y} pushes?"),
        "who swaps": ("which object swaps with {y}?", "what {a} is the object that swaps with {y}?"),
        "who moves": ("which object moves {w}?", "what {a} is the object that moves {w}?"),
        "who starts": ("which object is in the {q} at the start?", "what {a} is the {q} object at the start?"),
        "who ends": ("which object is in the {q} at the end?", "what {a} is the {q} object at the end?"),
    },
    outside="outside", nowhere="nowhere",
)  # fmt: skip
HOW2QA = Style(
    options=4,
    verbs={"move": "goes {w}", "push": "shoves {y}", "swap": "trades with {y}", "appear": "shows up",
           "vanish": "disappears"},
    texts={
        "doing": ("what is {x} doing in this video?",), "doing first": ("what is the first thing {x} is doing?",),
        "doing last": ("what is the last thing {x} is doing?",),
        "doing after": ("what is {x} doing in the step after {c}?",),
        "doing before": ("what is {x} doing in the step before {c}?",),
        "where at the start": ("in which corner is {x} in the beginning?",),
        "where at the end": ("in which corner is {x} when it is finished?",),
        "where after": ("in which corner is {x} once {c}?",), "way": ("in what direction is {x} going?",),
        "order first": ("what is the first step?",), "order last": ("what is the final step?",),
        "order after": ("what is the step after {c}?",), "order before": ("what is the step before {c}?",),
        "looks": ("what is the {a} of {x}?",),
        "who appear": ("what object shows up?", "what is the {a} of the object showing up?"),
        "who vanish": ("what object disappears?", "what is the {a} of the object that disappears?"),
        "who pushes": ("what object shoves {y}?", "what is the {a} of the object that shoves {y}?"),
        "who is pushed": ("what object is shoved by {y}?", "what is the {a} of the object shoved by {y}?"),
        "who swaps": ("what object trades with {y}?", "what is the {a} of the object trading with {y}?"),
        "who moves": ("what object is going {w}?", "what is the {a} of the object going {w}?"),
        "who starts": ("what object is placed {q} in the beginning?",),
        "who ends": ("what object is placed {q} when it is finished?",),
        "who steps": ("what object acts in the {w} step?", "what is the {a} of the object acting in the {w} step?"),
    },
)  # fmt: skip


@dataclass(frozen=True)
class Mention:
    """A reference inside a question: its words, the line that explains it (-1: none) and the kind that it names."""

    text: str
    actor: int
    line: int = -1
    kind: Kind = Kind()


@dataclass(frozen=True)
class Draft:
    """A question on an episode before its options are shuffled.

    `asked` is what the balancer sees: text without names, answer and options as classes. `ticks` are the first and last
    tick that show the answer, `lines` the subtitles that are needed, `actors` the objects that are looked at.
    """

    asked: Asked
    question: str
    right: str
    rivals: tuple[str, ...]
    ticks: tuple[int, int]
    lines: frozenset[int]
    actors: frozenset[int]
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class Asking:
    """Everything that a form needs to ask about one episode."""

    episode: Episode
    script: Script
    style: Style
    rng: random.Random
    with_held_out: bool

    @property
    def whole(self) -> tuple[int, int]:
        """The ticks of the whole episode."""
        return 0, self.episode.ticks - 1

    def mention(self, actor: int, without: Sequence[str] = ()) -> Mention:
        """A name when there is one, an object that somebody watches, or a description by one attribute."""
        named, watched = self.script.named, self.script.watched
        if actor in named and self.rng.random() < 0.7:
            return Mention(self.script.lines[named[actor]].name, actor, named[actor])
        if actor in watched and self.rng.random() < 0.4:
            return Mention(self.watched_text(self.script.lines[watched[actor]]), actor, watched[actor])
        return self.described(actor, without)

    def described(self, actor: int, without: Sequence[str] = ()) -> Mention:
        """A description by colour or shape."""
        kind = kind_of_actor(self.episode.actors[actor], (self.rng.choice([a for a in ASKABLE if a not in without]),))
        return Mention(kind.the, actor, -1, kind)

    def phrase(self, event: Event, other: Mention | None) -> str:
        """What happens in `event` to the object that is not `other`, without a subject."""
        return self.style.verbs[event.kind].format(y=other.text if other else "", w=event.direction)

    def heard(self, texts: Iterable[str]) -> frozenset[int]:
        """The lines without which `texts` are not understood."""
        whole, lines = " ".join(texts), self.script.lines
        keys = [line.name or (self.watched_text(line) if line.actor >= 0 else "") for line in lines]
        return frozenset(i for i, key in enumerate(keys) if key and key in whole)

    @staticmethod
    def watched_text(line: Line) -> str:
        """Words for the object that `line` points out."""
        return f"the object that {line.speaker} watches" if line.speaker else "the important object"

    def draft(
        self, form: str, answer: str, options: Sequence[str], right: str, rivals: Sequence[str], ticks: tuple[int, int],
        mentions: Iterable[Mention] = (), template: str = "", actors: Iterable[int] = (), **parts: str,
    ) -> Draft:  # fmt: skip
        """A question of `form`; `parts` fill its template. `actors` are looked at besides those that are mentioned."""
        mentions = list(mentions)
        template = template or self.rng.choice(self.style.texts[form])
        question = template.format(**parts)
        neutral = question
        for mention in mentions:
            if mention.line >= 0:
                neutral = neutral.replace(mention.text, "it")
        looked_at = frozenset((*actors, *(m.actor for m in mentions)))
        lines = self.heard((question, right, *rivals))
        kinds = (*(m.kind for m in mentions), *(self.script.lines[i].kind for i in lines))
        asked = Asked(form, neutral, answer, tuple(options))
        return Draft(asked, question, right, tuple(rivals), ticks, lines, looked_at, kinds)
