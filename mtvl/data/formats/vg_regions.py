"""Region descriptions of Visual Genome as published: `region_descriptions.json`, a list of pictures with phrases.

*Source:* homes.cs.washington.edu/~ranjay/visualgenome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.records import once_each, read_json_list
from mtvl.data.formats.rows import CaptionRow


class VGRegions:
    """Reader of region descriptions; the set has no official splits, so a file is a split."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[CaptionRow]:
        """One row a picture in file order, its phrases as captions; a picture may have none. Picture field: image_id."""
        records = [record for file in files["rows"] for record in read_json_list(file)]
        pictures = list(once_each(((r.key("id", "image_id"), r) for r in records), "picture id"))
        described = [(uid, record) for uid, record in pictures if record.values.get("regions") != []]
        regions = [(uid, region) for uid, record in described for region in record.records("regions")]
        captions: dict[str, list[tuple[str, str]]] = {uid: [] for uid, _ in pictures}
        for (uid, _), (region_id, region) in zip(
            regions, once_each(((r.key("region_id", "id"), r) for _, r in regions), "region id"), strict=True
        ):
            captions[uid].append((region_id, region.text("phrase")))
        return [
            CaptionRow(
                file=record.file, place=record.place, uid=uid, pictures=({"image_id": uid},),
                captions=tuple(captions[uid]), split=split,
            )
            for uid, record in pictures
        ]  # fmt: skip
