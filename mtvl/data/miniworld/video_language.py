"""Text for pretraining a backbone on episodes of disjoint seeds: masked statements, choices to point at, sentences.

As for pictures (`language`), the wording of all that goes with a video is kept apart from that of the benchmark files
while the reasoning is the same; the benchmarks' wording is read as plain sentences, as in `prose`. Held-out
compositions are never mentioned. Use it with episodes of the split "pretrain".
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mtvl.data.miniworld.episode import Episode
from mtvl.data.miniworld.grammar import QUARTERS, Kind
from mtvl.data.miniworld.language import MASK, Cloze, cloze
from mtvl.data.miniworld.scene import COLOURS, SHAPES, Scene
from mtvl.data.miniworld.subtitles import HOW2, TV, conversation, instructions
from mtvl.data.miniworld.video_captions import instruction, moment_captions
from mtvl.data.miniworld.video_forms import (
    MENTIONS,
    NAMES,
    absent_kinds,
    joins_held_out,
    kind_of_actor,
    refer,
    taking_part,
)
from mtvl.data.miniworld.video_questions import some_drafts
from mtvl.data.miniworld.video_statements import (
    PAST,
    STATEMENTS,
    STAYED,
    Telling,
    clause,
    may_describe,
    possible_events,
    verb_phrase,
)
from mtvl.data.miniworld.video_styles import HOW2QA, TVQA

_WAYS = ("left", "right", "up", "down")
_DIGITS = tuple("0123456")
# What a pointing item may be answered with: answers of one class stand beside each other.
_CLASSES = (COLOURS, SHAPES, QUARTERS, (*PAST.values(), STAYED), _WAYS, _DIGITS)
_MOST_PICKS = 6


def cloze_episode(episode: Episode, rng: random.Random) -> list[Cloze]:
    """Masked statements about one episode with the text that `<mask>` stands for (25 to 40, in random order).

    Numbers are answered with digits, truth with "yes" or "no", places with one of QUARTERS; every other answer is a
    word. A part of the statements calls actors by names that they state themselves.
    """
    found: list[Cloze] = []
    for make in STATEMENTS:
        names = _some_names(episode, rng) if rng.random() < 0.25 else {}
        found += [_introduced(episode, names, item, rng) for item in make(Telling(episode, rng, names))]
    rng.shuffle(found)
    return [(" ".join(text.split()), answer) for text, answer in found]


def pick_episode(episode: Episode, rng: random.Random) -> list[Cloze]:
    """Masked statements with 4 or 5 options to point at, answered with "a0" to "a4" (about ten, in random order)."""
    found = []
    for text, answer in cloze_episode(episode, rng):
        options = _rivals(text, answer, rng)
        if options:
            found.append(_pointing(text, answer, options, rng))
    found = rng.sample(found, min(_MOST_PICKS, len(found)))
    names = _some_names(episode, rng) if rng.random() < 0.4 else {}
    telling = Telling(episode, rng, names)
    for text, answer, options in (*_pick_actors(telling), *_pick_clauses(telling)):
        found.append(_introduced(episode, names, _pointing(text, answer, options, rng), rng))
    rng.shuffle(found)
    return [(" ".join(text.split()), answer) for text, answer in found]


def pick_scene(scene: Scene, rng: random.Random) -> list[Cloze]:
    """The items of `cloze` for one picture whose answers have rivals, as choices to point at (about ten)."""
    found = []
    for text, answer in cloze(scene, rng):
        options = _rivals(text, answer, rng)
        if options:
            found.append(_pointing(text, answer, options, rng))
    return found


def video_sentences(episode: Episode, rng: random.Random) -> list[str]:
    """About fifteen sentences in the wording of the benchmarks, to be read without any video.

    Captions, subtitle lines, questions without their answers, and loose phrases of which options are made.
    """
    found: list[str] = []
    for voice, style in ((TV, TVQA), (HOW2, HOW2QA)):
        script = conversation(episode, rng, voice)
        found += [line.row["text"].strip() for line in script.lines]
        for draft in some_drafts(episode, script, style, rng, 3):
            found.append(draft.question)
            if " " in draft.right:
                found.append(rng.choice((draft.right, *draft.rivals)))
        if voice is TV:
            event = rng.choice(episode.events)
            found += [text for _, text in moment_captions(episode, event, script.lines, 4, rng)]
    found.append(instruction(episode, rng))
    found += [line.text for line in instructions(episode, rng).lines]
    return found


def _some_names(episode: Episode, rng: random.Random) -> dict[int, str]:
    actors = range(len(episode.actors))
    named = rng.sample(actors, rng.randint(1, len(actors)))
    return dict(zip(named, rng.sample([name.lower() for name in NAMES], len(named)), strict=True))


def _introduced(episode: Episode, names: dict[int, str], item: Cloze, rng: random.Random) -> Cloze:
    """Put "name max : the red star ." before a text that uses names; unused names come along."""
    text, answer = item
    if not set(names.values()) & set(text.replace(".", " ").split()):
        return item
    said = [
        f"name {name} : {refer(episode.actors[actor], rng, (), False).the} ."
        for actor, name in rng.sample(sorted(names.items()), len(names))
    ]
    return " ".join((*said, text)), answer


def _rivals(text: str, answer: str, rng: random.Random) -> list[str]:
    """Three or four wrong answers of the same class, [] when there are too few."""
    values = next((c for c in _CLASSES if answer in c), ())
    if not values or (values is _WAYS and " to the <mask> of" in text):  # such an answer is never up or down
        return []
    if values is _DIGITS:
        # A window around the number: were its neighbours always the rivals, the middle one would be right.
        size = rng.choice((4, 5))
        first = rng.randint(max(0, int(answer) - size + 1), min(int(answer), len(_DIGITS) - size))
        return [digit for digit in _DIGITS[first : first + size] if digit != answer]
    rivals = [v for v in values if v != answer and not joins_held_out(v, text.split())]
    number = min(rng.choice((3, 4)), len(rivals))
    return rng.sample(rivals, number) if number >= 3 else []


def _pointing(text: str, answer: str, rivals: Sequence[str], rng: random.Random) -> Cloze:
    options = [answer, *rivals]
    rng.shuffle(options)
    listed = " ".join(f"a{i}: {option}." for i, option in enumerate(options))
    return f"{text} {listed}", f"a{options.index(answer)}"


def _pick_actors(telling: Telling) -> list[tuple[str, str, list[str]]]:
    """Who did it, as text, answer, rivals: descriptions of the other actors first, then of objects not there."""
    episode, rng = telling.episode, telling.rng
    found = []
    for number, event in rng.sample(telling.numbered, min(2, len(telling.numbered))):
        form = rng.choice([f for f in MENTIONS if not kind_of_actor(episode.actors[event.actor], f).is_held_out])
        kinds: dict[int, Kind] = {i: kind_of_actor(actor, form) for i, actor in enumerate(episode.actors)}
        answer = kinds.pop(event.actor)
        # What is pushed cannot push: it is no rival.
        rivals = [kind for actor, kind in kinds.items() if actor != event.other and not kind.is_held_out]
        strangers = absent_kinds(episode, form, False)
        rivals += rng.sample(strangers, min(len(strangers), max(0, rng.choice((3, 4)) - len(rivals))))
        if len(rivals) >= 3:
            text = f"{telling.which(number)} {MASK} {verb_phrase(telling, event)}"
            found.append((text, answer.the, [kind.the for kind in rivals]))
    return found


def _pick_clauses(telling: Telling) -> list[tuple[str, str, list[str]]]:
    """What happened, as text, answer, rivals: other events of the episode and events that were not."""
    episode, rng = telling.episode, telling.rng
    found = []
    for number, event in rng.sample(telling.numbered, min(2, len(telling.numbered))):
        # An event may happen twice: one option for both.
        elsewhere = {
            (e.kind, *sorted(taking_part(e))): e for e in episode.events if not may_describe(episode, event, e)
        }
        wrong = rng.sample(list(elsewhere.values()), min(len(elsewhere), rng.randint(0, 2)))
        parts = {frozenset(taking_part(e)) | {e.kind} for e in (event, *wrong)}
        others = possible_events(len(episode.actors))
        rng.shuffle(others)
        for said in others:
            if len(wrong) == 4 or may_describe(episode, event, said):
                continue
            if frozenset(taking_part(said)) | {said.kind} not in parts:
                wrong.append(said)
                parts.add(frozenset(taking_part(said)) | {said.kind})
        rivals = [clause(telling, said) for said in wrong[: rng.choice((3, 4))]]
        if len(rivals) >= 3:
            found.append((f"{telling.when(number)} {MASK}", clause(telling, event), rivals))
    return found
