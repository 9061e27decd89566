"""The command that holds estimates against runs: one small cell really measured, and what it says of slips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import check_estimate  # noqa: E402

SMALL = [
    "backbone.vision={width: 128, layers: 2, heads: 4, patch: 8}", "pairs.queue_size=512", "train.global_batch=8",
    "backbone.text={width: 128, layers: 2, heads: 4, ffn: 512, vocab: 4000, positions: 64}",
]  # fmt: skip


@pytest.mark.multiproc
@pytest.mark.slow
def test_a_run_holds_and_sends_what_is_estimated() -> None:
    """All weights trained on pairs: activations are at their highest when there is hardly a gradient yet."""
    command = [
        sys.executable,
        str(TOOLS / "check_estimate.py"),
        "--json",
        "--methods",
        "pairs",
        "--worlds",
        "2",
        "--stages",
        "2",
    ]
    done = subprocess.run([*command, *SMALL], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    memory, sent = json.loads(done.stdout[: done.stdout.rindex("]") + 1])
    assert (memory["cell"], memory["what"], sent["what"]) == ("pairs-zero2-world2", "memory", "sent coco_retrieval")
    assert abs(memory["off"]) < 0.1 and abs(sent["off"]) < 0.01  # measured: 5.6 % of memory


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ([(0, 10), (20, 10), (0, -10), (40, 10)], 20),
        ([(100, 50), (100, 50)], 50),  # given back by a thread that nobody watches, and given out again
        ([(100, 50), (120, 100), (300, 1)], 101),
        ([(100, 10), (110, 10), (95, 20)], 20),
        ([(100, 10), (50, -30), (110, 5)], 15),  # of before
    ],
)
def test_what_is_given_back_unseen_does_not_count_for_ever(changes: list[tuple[int, int]], most: int) -> None:
    assert check_estimate.most_held(changes) == most


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stages", "two"], "expected some of 0,1,2,3, found 'two'"),
        (["--worlds", "0"], "found '0'"),
        (["--methods", "adaptr"], "unknown method 'adaptr'; known: adapter, full"),
        (["--methods", "pairs", "--stages", "3"], "the trainer refuses ZeRO 3 for pairs"),
        (["optm.lr=1"], "unknown key 'optm'"),
    ],
)
def test_slips_are_named_before_anything_is_launched(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_estimate, "launch", lambda *_: pytest.fail("was launched"))
    with pytest.raises(SystemExit) as end:
        check_estimate.main(words)
    assert end.value.code == 2 and said in capsys.readouterr().err
