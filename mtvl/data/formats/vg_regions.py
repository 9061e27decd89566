"""Region descriptions of Visual Genome as published: `region_descriptions.json`, a list of pictures with phrases.

*Source:* homes.cs.washington.edu/~ranjay/visualgenome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.records import Record, keyed, read_json_list, rows_of
from mtvl.data.formats.rows import CaptionRow


class VGRegions:
    """Reader of region descriptions; the set has no official splits, so a file is a split."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[CaptionRow]:
        """One row a picture in file order, its phrases as captions; a picture may have none. Picture field: image_id."""
        records = [record for file in files["rows"] for record in read_json_list(file)]
        pictures = keyed(records, lambda r: r.key("id", "image_id"), "picture id")
        owners: dict[str, str] = {}
        return rows_of(pictures.items(), lambda uid, record: _row(uid, record, split, owners))


def _row(uid: str, record: Record, split: str, owners: dict[str, str]) -> CaptionRow:
    """A picture with its phrases. `owners`: region id -> picture, of the rows before and this one."""
    regions = [] if record.values.get("regions") == [] else record.records("regions")
    captions = [(region.key("region_id", "id"), region.text("phrase")) for region in regions]
    own = [region_id for region_id, _ in captions]
    twice = next((i for i in own if i in owners or own.count(i) > 1), None)
    if twice is not None:
        raise record.error(
            f"expected every region id once, found {twice} again (first in picture {owners.get(twice, uid)})"
        )
    owners.update(dict.fromkeys(own, uid))
    return CaptionRow(
        file=record.file, place=record.place, uid=uid, pictures=({"image_id": uid},), captions=tuple(captions),
        split=split,
    )  # fmt: skip
