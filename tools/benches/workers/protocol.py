"""What a measured process does: prepare once, then one timed round for every line on its standard input.

It is imported in foreign environments too, so it needs torch and the standard library alone.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

Step = Callable[[], object]


def resident(kind: str = "VmRSS") -> float:
    """Memory of this process in MiB: VmRSS now, VmHWM the most since `forget_peak`; 0 where /proc is missing."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(kind + ":")), 0.0)


def forget_peak() -> None:
    """Start VmHWM anew."""
    reset = Path("/proc/self/clear_refs")
    if reset.is_file():
        reset.write_text("5")


def claim_output() -> TextIO:
    """Keep standard output for answers: what is printed from now on goes to standard error. Libraries print on import."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def count_operations(step: Step) -> int:
    """Run `step` once; the floating-point operations of its matrix products, 0 where torch is not in use."""
    if "torch" not in sys.modules:
        step()
        return 0
    from torch.utils.flop_counter import FlopCounterMode

    packed = getattr(sys.modules["torch"].ops.mkldnn, "_linear_pointwise", None)  # unknown to the counter
    with FlopCounterMode(display=False, custom_mapping={packed: _linear_operations} if packed else {}) as counter:
        step()
    return counter.get_total_flops()


def _linear_operations(rows: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Of rows (..., n) and a weight (m, n)."""
    return 2 * math.prod(rows) * weight[0]


def serve(prepare: Callable[[], tuple[Step, str]], answers: TextIO) -> None:
    """Answer every line of standard input with a JSON line: seconds of one step and its peak memory in MiB.

    Memory is counted from after the imports, so weights, gradients, optimizer state and activations are in it and
    libraries are not. `prepare` returns the step and a note, `answers` is what `claim_output` gave.
    """
    imported = resident()
    step, note = prepare()
    answers.write(json.dumps({"note": note, "operations": count_operations(step)}) + "\n")
    answers.flush()
    for _ in sys.stdin:
        forget_peak()
        begin = time.perf_counter()
        step()
        seconds = time.perf_counter() - begin
        answers.write(json.dumps({"seconds": seconds, "mebibytes": resident("VmHWM") - imported}) + "\n")
        answers.flush()
