"""The machine's matrix peak: a product of two square float32 matrices, large enough that nothing else counts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.workers.protocol import Step, claim_output, serve  # noqa: E402

ANSWERS = claim_output() if __name__ == "__main__" else sys.stdout

import torch  # noqa: E402

SIDE = 3072


def prepare() -> tuple[Step, str]:
    """One product."""
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    return lambda: torch.mm(a, b), f"{SIDE} x {SIDE}"


if __name__ == "__main__":
    serve(prepare, ANSWERS)
