"""Rows of VALUE's files (TVQA, How2QA, TVC, YC2C and their subtitles) for the episodes of one split.

Each function is pure: its rows depend on the episodes and the random generator alone. The field `held_out`, which the
official files do not have, marks rows that touch a composition absent from training.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtvl.data.miniworld.episode import TICK_SECONDS, Episode
from mtvl.data.miniworld.grammar import Kind
from mtvl.data.miniworld.subtitles import HOW2, TV, Line, Script, conversation, instructions
from mtvl.data.miniworld.video_captions import instruction, moment_captions
from mtvl.data.miniworld.video_forms import taking_part
from mtvl.data.miniworld.video_questions import Questioner
from mtvl.data.miniworld.video_styles import HOW2QA, TVQA, Draft

Row = dict[str, Any]

_FIRST_ID = {"train": 1, "val": 200_001, "test": 400_001}
_FIRST_DESC_ID = {"train": 1, "val": 1_000_001, "test": 2_000_001}
QUESTIONS_A_VIDEO = 4
_CAPTIONS = {"train": 2, "val": 4, "test": 4}  # of a moment, as in VALUE
_SHOWS = ("Square Town", "Star Street", "The Circle", "Hearts")
_WHOLE_SHARE = 0.15  # of moments that are given as the whole video
_OVERLAP_SECONDS = 0.3  # by which a moment holds a line that it needs


@dataclass(frozen=True)
class VideoRows:
    """The subtitles file of a source of videos, and the rows of its tasks."""

    subtitles: list[Row]
    files: dict[str, list[Row]]


def tv_rows(episodes: Mapping[str, Episode], split: str, rng: random.Random) -> VideoRows:
    """Rows of "tvqa" and "tvc" for `episodes` (vid_name -> episode) of `split`."""
    questioner = Questioner(TVQA, rng, split == "test")
    subtitles: list[Row] = []
    questions: list[Row] = []
    clips: list[Row] = []
    for name, episode in episodes.items():
        script = conversation(episode, rng, TV)
        subtitles.append(_subtitles(name, script))
        show = rng.choice(_SHOWS)
        for draft in questioner.ask(episode, script, QUESTIONS_A_VIDEO):
            row = _question(draft, episode, script, _FIRST_ID[split] + len(questions), name, rng)
            held_out = row.pop("held_out")
            questions.append({**row, "show_name": show, "held_out": held_out})
        clips += _clips(name, episode, script, split, len(clips), rng)
    return VideoRows(subtitles, {"tvqa": questions, "tvc": clips})


def how2_rows(episodes: Mapping[str, Episode], split: str, rng: random.Random) -> VideoRows:
    """Rows of "how2qa" for `episodes` (vid_name -> episode) of `split`."""
    questioner = Questioner(HOW2QA, rng, split == "test")
    subtitles: list[Row] = []
    questions: list[Row] = []
    for name, episode in episodes.items():
        script = conversation(episode, rng, HOW2)
        subtitles.append(_subtitles(name, script))
        for draft in questioner.ask(episode, script, QUESTIONS_A_VIDEO):
            questions.append(_question(draft, episode, script, _FIRST_ID[split] + len(questions), name, rng))
    return VideoRows(subtitles, {"how2qa": questions})


def yc2_rows(episodes: Mapping[str, Episode], split: str, rng: random.Random) -> VideoRows:
    """Rows of "yc2c" for `episodes` (vid_name of a segment -> episode with one event) of `split`."""
    subtitles: list[Row] = []
    rows: list[Row] = []
    for name, episode in episodes.items():
        script = instructions(episode, rng)
        subtitles.append(_subtitles(name, script))
        desc = {"desc": instruction(episode, rng), "desc_id": _FIRST_DESC_ID[split] + len(rows)}
        rows.append(
            {
                "vid_name": name, "clip_id": _FIRST_ID[split] + len(rows), "duration": round(episode.seconds),
                "descs": [desc], "held_out": _is_held_out(episode, taking_part(episode.events[0])),
            }
        )  # fmt: skip
    return VideoRows(subtitles, {"yc2c": rows})


def _subtitles(name: str, script: Script) -> Row:
    return {"vid_name": name, "sub": [line.row for line in script.lines]}


def _is_held_out(episode: Episode, actors: Iterable[int], kinds: Sequence[Kind] = ()) -> bool:
    return any(episode.actors[actor].is_held_out for actor in actors) or any(kind.is_held_out for kind in kinds)


def _question(draft: Draft, episode: Episode, script: Script, qid: int, name: str, rng: random.Random) -> Row:
    options = [draft.right, *draft.rivals]
    rng.shuffle(options)
    start, end = _moment(episode, draft.ticks, [script.lines[i] for i in draft.lines], rng)
    return {
        "qid": qid, "q": draft.question, **{f"a{i}": option for i, option in enumerate(options)},
        "answer_idx": options.index(draft.right), "ts": f"{start:.2f}-{end:.2f}", "vid_name": name,
        "held_out": _is_held_out(episode, draft.actors, draft.kinds),
    }  # fmt: skip


def _moment(episode: Episode, ticks: tuple[int, int], lines: Sequence[Line], rng: random.Random) -> tuple[float, float]:
    """Start and end in seconds of a span that shows `ticks` and lets `lines` be heard; now and then the whole video."""
    first, last = ticks
    if rng.random() < _WHOLE_SHARE or (first, last) == (0, episode.ticks - 1):
        return 0.0, episode.seconds
    start = first * TICK_SECONDS + rng.uniform(0.1, 0.5)
    end = (last + 1) * TICK_SECONDS - rng.uniform(0.1, 0.5)
    start = min([start, *(line.end - _OVERLAP_SECONDS for line in lines)])
    end = max([end, *(line.start + _OVERLAP_SECONDS for line in lines)])
    return round(max(0.0, start), 2), round(min(episode.seconds, end), 2)


def _clips(name: str, episode: Episode, script: Script, split: str, first: int, rng: random.Random) -> list[Row]:
    """One moment for each event."""
    rows: list[Row] = []
    number = _CAPTIONS[split]
    for event in episode.events:
        start = round(event.tick * TICK_SECONDS + rng.uniform(0.1, 0.4), 2)
        end = round((event.tick + 2) * TICK_SECONDS - rng.uniform(0.1, 0.4), 2)
        lines = [line for line in script.lines if line.start < end and line.end > start]
        index = first + len(rows)
        captions = moment_captions(episode, event, lines, number, rng)
        descs = [
            {"desc": text, "desc_id": _FIRST_DESC_ID[split] + index * number + i, "type": kind,
             "from_retrieval": i < number // 2}
            for i, (kind, text) in enumerate(captions)
        ]  # fmt: skip
        told = [line.actor for line in lines if line.actor >= 0]
        rows.append(
            {
                "vid_name": name, "duration": episode.seconds, "ts": [start, end],
                "clip_id": _FIRST_ID[split] + index, "descs": descs,
                "held_out": _is_held_out(episode, (*taking_part(event), *told)),
            }
        )  # fmt: skip
    return rows
