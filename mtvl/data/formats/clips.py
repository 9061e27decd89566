"""What the rows of all video benchmarks have in common: the name of a video, its time span and its subtitles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.records import Record, describe, each, fault
from mtvl.data.formats.rows import Clip
from mtvl.data.formats.subtitles import Subtitles, read_subtitles, seconds

_SPAN = re.compile(r"\s*(\d+(?:\.\d*)?)\s*-\s*(\d+(?:\.\d*)?)\s*")
_UNKNOWN_SPAN = "nan-nan"


def read_clips(records: Mapping[str, Record], files: Mapping[str, Sequence[Path]]) -> dict[str, Clip]:
    """The video of each record by the record's id. Path field: vid_name.

    Without files of the role `subtitles` there are none. Either every record has a time span or none has; where faults
    of rows are taken, those without are left out.
    """
    names = dict(each(records.items(), lambda _, record: record.key("vid_name")))
    subtitles = read_subtitles(files["subtitles"], set(names.values())) if files.get("subtitles") else None
    shaped = _of_one_shape({uid: records[uid] for uid in names})
    return dict(each(shaped.items(), lambda uid, record: _clip(record, names[uid], subtitles)))


def _of_one_shape(records: Mapping[str, Record]) -> Mapping[str, Record]:
    with_span = sum(record.has("ts") for record in records.values())
    if with_span in (0, len(records)):
        return records
    text = f"expected the field 'ts' in every row or in none, found it in {with_span} of {len(records)}"
    for uid, bare in records.items():
        if not bare.has("ts"):
            fault(uid, bare.error(text))
    return {uid: record for uid, record in records.items() if record.has("ts")}


def _clip(record: Record, name: str, subtitles: Subtitles | None) -> Clip:
    text, span = read_span(record) if record.has("ts") else ("", None)
    lines = () if subtitles is None else subtitles.get(name)
    return Clip(fields={"vid_name": name}, ts=text, span=span, subtitles=lines)


def read_held_out(record: Record) -> bool | None:
    """The field `held_out`, which the official files do not have."""
    value = record.values.get("held_out")
    if value is not None and not isinstance(value, bool):
        raise record.error(f"expected true or false in 'held_out', found {describe(value)}")
    return value


def read_span(record: Record) -> tuple[str, tuple[float, float] | None]:
    """The time span `ts` as text and as numbers: "start-end" (TVQA, How2QA) or a list of two numbers (TVC), in seconds.

    The published TVQA has questions with the span "nan-nan"; its authors' scripts know of them. They have no span.
    Every other text, and a span that does not end after it starts, is a DataError.
    """
    value = record.need("ts")
    if isinstance(value, str):
        if value.strip().lower() == _UNKNOWN_SPAN:
            return "", None
        match = _SPAN.fullmatch(value)
        if match is None:
            raise record.error(f"expected a span 'start-end' in seconds in 'ts', found {value!r}")
        text, start, end = f"{match[1]}-{match[2]}", float(match[1]), float(match[2])
    elif isinstance(value, list) and len(value) == 2:
        start, end = seconds(record, value[0], "ts"), seconds(record, value[1], "ts")
        text = f"{value[0]}-{value[1]}"
    else:
        raise record.error(f"expected 'start-end' or two numbers in 'ts', found {describe(value)}")
    seconds(record, end, "ts")  # digits without end are infinite
    if not end > start:
        raise record.error(f"expected a span that ends after it starts in 'ts', found {describe(value)}")
    return text, (start, end)
