"""Subtitles of videos: one JSON object a line, `{"vid_name", "sub": [{"text", "start", "end"}]}`.

*Source:* github.com/VALUE-Leaderboard/DataRelease (`tv_subtitles.jsonl`, `how2_subtitles.jsonl`, `yc2_subtitles.jsonl`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.records import Record, describe, each, keyed, read_json_lines
from mtvl.data.formats.rows import SubtitleLine
from mtvl.errors import DataError

Subtitles = Mapping[str, tuple[SubtitleLine, ...]]


def read_subtitles(files: Sequence[Path], wanted: Collection[str]) -> Subtitles:
    """Subtitles of the videos `wanted`, by name. Every line of the files is checked, whether it is wanted or not.

    A video without a record is legal (nobody speaks in it, or it was never transcribed), and so is an empty `sub`. When
    no video at all has one, file and videos do not belong together: DataError.
    """
    names, found, count = set(wanted), {}, 0
    records = keyed((r for f in files for r in read_json_lines(f)), lambda r: r.key("vid_name"), "vid_name")
    for name, lines in each(records.items(), lambda _, record: _lines(record)):
        count += 1
        if name in names:
            found[name] = lines
    if names and not found:
        raise DataError(
            f"expected subtitles of {len(names)} videos, e.g. {min(names)}, found none among {count} records; "
            "give the subtitle file of these videos",
            file=files[0],
        )
    return found


def _lines(record: Record) -> tuple[SubtitleLine, ...]:
    values = record.need("sub")
    if not isinstance(values, list):
        raise record.error(f"expected a list of lines in 'sub', found {describe(values)}")
    return tuple(_line(Record(record.file, f"{record.place}.sub[{i}]", value)) for i, value in enumerate(values))


def _line(record: Record) -> SubtitleLine:
    text = record.need("text")
    if not isinstance(text, str):
        raise record.error(f"expected text in 'text', found {describe(text)}")
    start, end = seconds(record, record.need("start"), "start"), seconds(record, record.need("end"), "end")
    if end < start:
        raise record.error(f"expected a line that ends after it starts, found 'start' {start} and 'end' {end}")
    return SubtitleLine(start, end, " ".join(text.split()))


def seconds(record: Record, value: object, key: str) -> float:
    """`value` as a finite number of seconds from 0 on."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise record.error(f"expected seconds (a number from 0 on) in {key!r}, found {describe(value)}")
    return float(value)
