"""NLVR2 as LXMERT, VL-T5 and VL-Adapter hand it around: a list of rows that name their two pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.nlvr2_official import read_truth
from mtvl.data.formats.records import Record, keyed, read_json_list, rows_of
from mtvl.data.formats.rows import StatementRow


class NLVR2VLAdapter:
    """Reader of `nlvr/{train,valid,test}.json`; `uid` is only a running name, the identifier is the id."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[StatementRow]:
        """Rows in file order. Picture fields: name (img0 or img1), split (its first part), directory (empty)."""
        rows = (r for f in files["rows"] for r in read_json_list(f))
        return rows_of(keyed(rows, lambda r: r.text("identifier"), "identifier").items(), _row)


def _row(uid: str, record: Record) -> StatementRow:
    names = [record.text(key) for key in ("img0", "img1")]
    return StatementRow(
        file=record.file,
        place=record.place,
        uid=uid,
        pictures=tuple({"name": n, "split": n.partition("-")[0], "directory": ""} for n in names),
        statement=record.text("sent", "sentence"),
        label=read_truth(record) if record.has("label") else None,
    )
