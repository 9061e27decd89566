"""What is left out is counted, written down once, and bounded; where nobody takes faults they are errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mtvl.data.collate import IGNORE, Collator
from mtvl.data.formats import FORMATS
from mtvl.data.formats.records import taking_faults
from mtvl.data.skips import Sieve, SkipLog
from mtvl.errors import DataError
from mtvl.types import Example, Limits, Segment, Target, Visual


def records(log: SkipLog) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.file.read_text().splitlines()]


def test_the_limit_is_a_share_of_the_split(tmp_path: Path) -> None:
    log = SkipLog(tmp_path)
    sieve = Sieve("vqa", "train", 0.02, log)
    for uid in ("1", "2", "1"):
        sieve.take(uid, DataError("broken", file="a.json", row=uid))
    sieve.check(100)
    assert sieve.summary().startswith("vqa/train: 2 of 100 cannot be used")
    with pytest.raises(
        DataError, match=r"3 of 100 cannot be used, expected at most 2\.000%.*'task\.vqa\.bad_input\.most'"
    ):
        sieve.take_here("3", DataError("found while training"))
    assert [(r["uid"], r["reason"]) for r in records(log)] == [
        ("1", "a.json, row 1: broken"), ("2", "a.json, row 2: broken"), ("3", "found while training"),
    ]  # fmt: skip


def test_a_second_start_writes_nothing_twice(tmp_path: Path) -> None:
    for _ in range(2):
        log = SkipLog(tmp_path)
        Sieve("vqa", "train", 0.5, log).take("1", DataError("broken"))
    with log.file.open("a") as file:
        file.write('{"task": "vqa", "spl')  # the run died here
    log = SkipLog(tmp_path)
    Sieve("vqa", "train", 0.5, log).take("2", DataError("broken too"))
    lines = log.file.read_text().splitlines()
    assert [json.loads(line)["uid"] for line in (lines[0], lines[2])] == ["1", "2"] and len(lines) == 3


def test_other_ranks_write_what_only_they_see(tmp_path: Path) -> None:
    log = SkipLog(tmp_path, rank=1)
    sieve = Sieve("vqa", "train", 0.5, log)
    sieve.take("1", DataError("every rank reads the same rows"))
    assert not list(tmp_path.iterdir())
    sieve.check(10)
    sieve.take_here("2", DataError("its own picture"))
    assert log.file.name == "skipped_1.jsonl" and [r["uid"] for r in records(log)] == ["2"]


def test_rows_are_left_out_only_where_somebody_takes_them(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    good = [{"identifier": f"train-{i}-0-0", "sentence": "x", "label": "True"} for i in range(3)]
    bad: list[Any] = [{**good[0], "identifier": 7}, {**good[1]}, "no row", {"identifier": "train-9-0-0"}]
    lines = [json.dumps(row) for row in [*good, *bad]] + ['{"identifier": NaN}', '{"identifier": "train-8']
    file.write_text("\n".join(lines))
    reader, taken = FORMATS.load("nlvr2_official")(), {}
    with pytest.raises(DataError, match="line 6"):
        reader.read({"rows": [file]}, "train")
    with taking_faults(lambda uid, error: taken.setdefault(uid, str(error))):
        rows = reader.read({"rows": [file]}, "train")
    assert [row.uid for row in rows] == [row["identifier"] for row in good]
    assert set(taken) == {"line 4", "train-1-0-0", "line 6", "train-9-0-0", "line 8", "line 9"}
    assert all(str(file) in reason for reason in taken.values())
    with pytest.raises(DataError):
        reader.read({"rows": [file]}, "train")  # nobody takes them any more


class Words:
    pad_id, eos_id, num_special = 0, 1, 1

    def encode(self, text: str) -> list[int]:
        return [2 + len(word) for word in text.split()]

    def wrap(self, ids: Any) -> list[int]:
        return [*ids, 1]

    def decode(self, ids: Any) -> str:
        return ""


class Pictures:
    grid = (2, 3)

    def get(self, paths: Any) -> torch.Tensor:
        if any("broken" in path for path in paths):
            raise DataError("found damage", file=paths[0])
        return torch.ones(len(paths), 2, 3)


@pytest.mark.parametrize("names", [("a", "broken", "b"), ("broken 1", "broken 2")])
def test_a_row_that_fails_late_counts_for_nothing(names: tuple[str, ...]) -> None:
    rows = [Example(n, "vqa", (Segment("q", "x y"),), Visual((n,)), (Target("z", 0.5),)) for n in names]
    found: list[str] = []
    collator = Collator(Words(), Pictures(), {"vqa": Limits()}, on_bad=lambda example, error: found.append(example.uid))
    batch = collator.collate("vqa", rows, epoch_keys=[0] * len(rows), training=True)
    assert found == [n for n in names if "broken" in n]
    for row, name in enumerate(names):
        is_bad = "broken" in name
        assert batch.uids[row] == ("" if is_bad else name) and batch.target_weights[row] == (0 if is_bad else 0.5)
        assert bool((batch.target_ids[row] == IGNORE).all()) == is_bad
    assert batch.features.shape == (len(rows), 1, 2, 3) and batch.feature_mask.all()
    with pytest.raises(DataError):
        collator.collate("vqa", rows, training=False)  # an evaluation has an answer for every row, or none
    with pytest.raises(DataError):
        Collator(Words(), Pictures(), {"vqa": Limits()}).collate("vqa", rows, epoch_keys=[0] * len(rows), training=True)
