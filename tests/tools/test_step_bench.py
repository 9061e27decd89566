"""Measured processes: the protocol, peak memory, and sides that are left out or end early."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from benches import step  # noqa: E402
from benches.workers import protocol  # noqa: E402

from mtvl.engine.frozen import is_available, packed_frozen_weights  # noqa: E402
from mtvl.errors import MtvlError  # noqa: E402

WORKER = """
import sys, time
sys.path.insert(0, {tools!r})
from benches.workers.protocol import claim_output, serve
answers = claim_output()
print("noise of a library on import")
def prepare():
    print("noise of a library")
    kept = b"k" * ({kept} * 2**20)  # zeros would not be resident
    def step(kept=kept):
        time.sleep({seconds})
        return b"s" * (32 * 2**20)
    return step, "{kept} MiB kept"
serve(prepare, answers)
"""


def worker(folder: Path, name: str, seconds: float, kept: int) -> list[str]:
    file = folder / f"{name}.py"
    file.write_text(WORKER.format(tools=str(TOOLS), seconds=seconds, kept=kept))
    return [sys.executable, str(file)]


def test_time_memory_and_notes_of_processes(tmp_path: Path) -> None:
    commands = {"slow": worker(tmp_path, "slow", 0.6, 128), "fast": worker(tmp_path, "fast", 0.05, 32)}
    slow, fast, slow_memory, fast_memory = step.measure_sides(commands, 2)
    assert slow.note == "128 MiB kept" and slow.ratio == 1 and slow.rounds == 2
    assert fast.baseline == "slow" and fast.ratio < 0.8
    assert slow_memory.median > fast_memory.median and fast_memory.rounds == 2
    # The step's own 32 MiB are gone when it has ended, and are in the peak all the same.
    assert 60 < fast_memory.median < 90


@pytest.mark.parametrize("script", ["own_step.py", "rank_step.py", "stock_step.py", "matrix_product.py"])
def test_workers_keep_their_output_before_they_import_libraries(script: str) -> None:
    lines = (TOOLS / "benches" / "workers" / script).read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(("import deepspeed", "import torch")))
    assert lines.index('ANSWERS = claim_output() if __name__ == "__main__" else sys.stdout') < first


def test_rates_stand_beside_the_peak(tmp_path: Path) -> None:
    product = (TOOLS / "benches/workers/matrix_product.py").read_text()
    product = product.replace("parents[2]", f"parents[0] / {str(TOOLS)!r}").replace("SIDE = 3072", "SIDE = 1024")
    slow, peak = tmp_path / "slow.py", tmp_path / "peak.py"  # the product with fewer rows, and half a second more
    slow.write_text(
        product.replace("torch.mm(a, b)", "(torch.mm(a[:512], b), time.sleep(0.5))").replace(
            "import sys", "import sys, time", 1
        )
    )
    peak.write_text(product)
    assert step.command(step.PEAK)[-1] == str(TOOLS / "benches/workers/matrix_product.py") and "SIDE = 1024" in product
    commands = {"slow": [sys.executable, str(slow)], step.PEAK: [sys.executable, str(peak)]}
    found = {result.name: result for result in step.measure_sides(commands, 1)}
    assert set(found) == {"slow", "slow: peak memory", "slow: rate", "matrix product: rate"}
    assert found["slow: rate"].median < 2 * 512 * 1024**2 / 0.5 / 1e9 < 2.2
    assert found["slow: rate"].ratio < 1 and found["matrix product: rate"].ratio == 1


def test_peak_starts_anew() -> None:
    block = b"b" * (96 * 2**20)
    del block
    protocol.forget_peak()
    assert protocol.resident("VmHWM") < protocol.resident() + 48


def test_process_that_ends_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)")
    with pytest.raises(MtvlError, match=r"broken\.py ended with exit code 3"):
        step.measure_sides({"broken": [sys.executable, str(broken)]}, 1)


def test_missing_environment_leaves_a_side_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MTVL_BENCH_PEFT", raising=False)
    assert step.command("peft LoRA r=128") == []
    assert "MTVL_BENCH_PEFT names no Python" in capsys.readouterr().out
    monkeypatch.setenv("MTVL_BENCH_PEFT", "/nowhere/python")
    with pytest.raises(MtvlError, match="/nowhere/python"):
        step.command("peft LoRA r=128")
    assert step.command("full")[0] == sys.executable


def test_operations_of_packed_weights_are_counted() -> None:
    """A product with a frozen weight in the processor's layout counts as the plain one does."""
    if not is_available():
        pytest.skip("this torch was built without oneDNN")
    layer = torch.nn.Linear(512, 640).requires_grad_(False)
    rows = torch.randn(2, 3, 512, requires_grad=True)

    def step() -> None:
        layer(rows).sum().backward()

    plain = protocol.count_operations(step)
    with packed_frozen_weights(True):
        assert protocol.count_operations(step) == plain == 2 * 2 * 6 * 512 * 640
