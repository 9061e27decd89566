"""The benchmarks of BLIP's step and of re-ranking, at sizes of seconds."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import pytest  # noqa: E402
from benches import blip, rerank, step  # noqa: E402


class Quick:
    """A worker whose seconds and memory follow from the method that it was asked for."""

    alive = most = 0

    def __init__(self, command: list[str]) -> None:
        Quick.alive += 1
        Quick.most = max(Quick.most, Quick.alive)
        self.name = next(word.partition("=")[2] for word in reversed(command) if word.startswith("petl.name="))
        self.note, self.mebibytes, self.operations = f"trains {self.name}", list[float](), 0.0

    def wait_until_prepared(self) -> None:
        pass

    def step(self) -> float:
        self.mebibytes.append({"full": 400.0, "uniadapter": 200.0, "unitrans": 220.0}[self.name])
        return {"full": 4.0, "uniadapter": 2.0, "unitrans": 2.2}[self.name]

    def close(self) -> None:
        Quick.alive -= 1


def test_sides_of_a_step_and_their_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "Worker", Quick)
    results = blip.measure(2)
    memory = ": peak memory"
    assert [(r.name, r.baseline, r.rounds, round(r.ratio, 3)) for r in results] == [
        (first_or_second + what, first + what, 2, ratio)
        for first, second, found in ((blip.FULL, blip.UNIADAPTER, 0.5), (blip.UNIADAPTER, blip.UNITRANS, 1.1))
        for what in ("", memory)
        for first_or_second, ratio in ((first, 1.0), (second, found))
    ]
    assert results[1].note == "trains uniadapter"
    assert Quick.most == 2, "two processes at a time"


def test_a_step_is_measured_in_a_process() -> None:
    """The smallest model; the rest is the recipe's, all answers of a question in one step."""
    command = [sys.executable, str(step.WORKERS / "blip_step.py"), "backbone.preset=tiny", "backbone.image_size=32"]
    worker = step.Worker([*command, *blip.SIDES[blip.UNITRANS]])
    try:
        worker.wait_until_prepared()
        assert worker.step() > 0 and worker.mebibytes[0] > 0
    finally:
        worker.close()
    assert worker.note.endswith("trained") and worker.operations > 0


def test_memory_of_reranking_does_not_grow_with_pictures() -> None:
    """Held in memory, the tokens alone of 1,280 pictures would take 72 MiB more than those of 128; 3 to 17 MiB were seen."""
    few, many, few_memory, many_memory = rerank.measure_pictures((128, 1280), 1)
    assert few.ratio == 1 and many.median > few.median and many.note == "tokens of all pictures: 80 MiB"
    assert many_memory.median - few_memory.median < 36
