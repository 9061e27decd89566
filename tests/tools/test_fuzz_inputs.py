"""Generated data sets with faults: nothing hangs, nothing sound is lost, every error is clear."""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TOOLS = str(Path(__file__).parents[2] / "tools")
sys.path.insert(0, TOOLS)
import fuzz_inputs  # noqa: E402
from fuzzing.cases import TARS, draw  # noqa: E402
from fuzzing.layouts import LAYOUTS  # noqa: E402
from fuzzing.running import run_case  # noqa: E402

sys.path.remove(TOOLS)


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# The same cases every time; a case that fails is named by its seed. The deadline is for one case, in ms.
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, derandomize=True, deadline=60_000, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(seed=st.integers(0, 2**32 - 1))
def test_faults_are_refused_or_left_out(quiet: None, seed: int) -> None:
    case = draw(random.Random(seed))
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_case(case, Path(folder) / "case")
    assert not outcome.lost and not outcome.faults, case.faults


def test_a_case_is_named_by_its_seed() -> None:
    """And every layout, every fault of a tar and all other kinds of faults are among the first five hundred."""
    again = [draw(random.Random(f"0:{n}")) for n in range(500)]
    assert [c.faults for c in again[:50]] == [draw(random.Random(f"0:{n}")).faults for n in range(50)]
    assert {c.layout.task for c in again} == set(LAYOUTS) and {c.tar for c in again} == {"", *TARS}
    texts = "\n".join(fault for c in again for fault in c.faults)
    for words in ("is empty", "is cut", "is huge", "an animated GIF", "another format", "sound alone", "one frame", "twice",
                  "centuries", "playlist", "is missing", "is a folder", "utf-16", "latin-1", "not finite", "no JSON",
                  "leaves the root", "features (pickle)", "100000 characters", "half a character"):  # fmt: skip
        assert words in texts, words


def test_hangs_and_crashes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def planted(seed: int, number: int, folder: Path) -> dict[str, object]:
        if number == 1:
            time.sleep(100)
        if number == 3:
            os._exit(9)
        lost = ["q7"] if number == 4 else []
        return {
            "number": number,
            "drawn": ["row 0: x"],
            "task": "vqa",
            "lost": lost,
            "faults": [],
            "errors": [],
            "skipped": 2,
        }

    monkeypatch.setattr(fuzz_inputs, "one", planted)
    results = fuzz_inputs.Cases(0, 1.0, tmp_path).run(range(6))
    assert [r["number"] for r in results] == list(range(6))
    assert [r.get("end", "") for r in results] == ["", "hang", "", "crash", "", ""]
    assert fuzz_inputs.report(results, 0, 1.0) == 3
    said = capsys.readouterr().out
    assert "6 cases" in said and "hangs 1, crashes 1, sound samples lost 1" in said and "--seed 0 --only 4" in said
