"""Captions of video clips as VALUE hands them around: TVC and YC2C, one JSON object a line.

*Source:* github.com/VALUE-Leaderboard/DataRelease and jayleicn/TVCaption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.clips import read_clips, read_held_out
from mtvl.data.formats.records import Record, keyed, read_json_lines, rows_of
from mtvl.data.formats.rows import CaptionRow, Clip


class ValueCaptions:
    """Reader of `{tvc,yc2c}_{train,val,test}_release.jsonl`; role `subtitles` adds what is said."""

    roles: Mapping[str, bool] = {"rows": True, "subtitles": False}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[CaptionRow]:
        """One row a clip in file order. Path field: vid_name. Only training rows must have `descs`."""
        records = keyed((r for f in files["rows"] for r in read_json_lines(f)), lambda r: r.key("clip_id"), "clip_id")
        clips = read_clips(records, files)
        return rows_of(clips.items(), lambda uid, clip: _row(uid, records[uid], clip, split))


def _row(uid: str, record: Record, clip: Clip, split: str) -> CaptionRow:
    captions: tuple[tuple[str, str], ...] = ()
    if split == "train" or record.has("descs"):
        captions = tuple(
            (desc.key("desc_id") if desc.has("desc_id") else str(number), desc.text("desc"))
            for number, desc in enumerate(record.records("descs"))
        )
    ids = [caption_id for caption_id, _ in captions]
    if len(set(ids)) != len(ids):
        raise record.error(f"expected every desc_id once in 'descs', found {', '.join(ids)}")
    return CaptionRow(
        file=record.file,
        place=record.place,
        uid=uid,
        clip=clip,
        captions=captions,
        split=split,
        is_held_out=read_held_out(record),
    )
