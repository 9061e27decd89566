"""The benchmarks of BLIP's step and of re-ranking, at sizes of seconds."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from benches import blip, rerank  # noqa: E402


def test_sides_of_a_step_and_their_ratios() -> None:
    small = ["backbone.preset=tiny", "backbone.image_size=32"]
    results = blip.measure_with(small, 1)
    assert [r.name for r in results] == [
        blip.FULL, blip.UNIADAPTER, blip.UNITRANS, blip.UNITRANS,
        *(f"{side}: peak memory" for side in (blip.FULL, blip.UNIADAPTER, blip.UNITRANS, blip.UNITRANS)),
    ]  # fmt: skip
    assert [r.baseline.partition(":")[0] for r in results] == [blip.FULL] * 3 + [blip.UNIADAPTER] + [blip.FULL] * 3 + [
        blip.UNIADAPTER
    ]
    assert all(r.median > 0 and r.rounds == 1 for r in results)
    counts = [int(r.note.split()[0].replace(",", "")) for r in results[:3]]
    assert counts[0] > counts[1] and counts[0] > counts[2] > 0


def test_memory_of_reranking_does_not_grow_with_pictures() -> None:
    """Held in memory, the tokens alone of 640 pictures would take 32 MiB more than those of 128."""
    few, many, few_memory, many_memory = rerank.measure_pictures((128, 640), 1)
    assert few.ratio == 1 and many.median > few.median and many.note == "tokens of all pictures: 40 MiB"
    assert many_memory.median - few_memory.median < 16
