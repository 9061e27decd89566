"""NLVR2 as published: one JSON object a line.

*Source:* github.com/lil-lab/nlvr. An identifier is "split-set-pair-sentence"; its pictures are
"split-set-pair-img0.png" and "...-img1.png" (train pictures lie in numbered folders, field `directory`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.records import Record, describe, keyed, read_json_lines, rows_of
from mtvl.data.formats.rows import StatementRow

_IDENTIFIER = re.compile(r"([A-Za-z0-9]+)-(\d+)-(\d+)-(\d+)")


class NLVR2Official:
    """Reader of `{train,dev,test1}.json`."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[StatementRow]:
        """Rows in file order. Picture fields: split (as in the identifier), directory, name."""
        rows = (r for f in files["rows"] for r in read_json_lines(f))
        return rows_of(keyed(rows, lambda r: r.text("identifier"), "identifier").items(), _row)


def _row(uid: str, record: Record) -> StatementRow:
    match = _IDENTIFIER.fullmatch(uid)
    if match is None:
        raise record.error(f"expected an identifier like 'dev-850-0-0', found {uid!r}")
    stem = uid.rpartition("-")[0]
    directory = record.key("directory") if record.has("directory") else ""
    fields = [{"split": match[1], "directory": directory, "name": f"{stem}-img{i}"} for i in (0, 1)]
    return StatementRow(
        file=record.file,
        place=record.place,
        uid=uid,
        pictures=tuple(fields),
        statement=record.text("sentence", "sent"),
        label=read_truth(record) if record.has("label") else None,
    )


def read_truth(record: Record) -> bool:
    """The label as a truth value: "True"/"False" in any case, 1/0, or a JSON truth value."""
    value = record.need("label")
    truth = {"true": True, "false": False, "1": True, "0": False}.get(str(value).strip().lower())
    if truth is None:
        raise record.error(f"expected True or False in 'label', found {describe(value)}")
    return truth
