"""Progress of a phase of pretraining and the learning rate that follows it."""

from __future__ import annotations

import time

import numpy as np


class Clock:
    """Progress of a phase that is bounded by steps or by minutes."""

    def __init__(self, name: str, minutes: float, steps: int) -> None:
        self.name, self.minutes, self.steps, self.start, self.step = name, minutes, steps, time.time(), 0

    @property
    def seconds(self) -> float:
        """Time spent so far, also before the run was resumed."""
        return time.time() - self.start

    def resume(self, step: int, seconds: float) -> None:
        """Go on from `step` after `seconds` of work."""
        self.step, self.start = step, time.time() - seconds

    @property
    def share(self) -> float:
        """Part of the phase that is done, 0..1; drives the learning rate."""
        if self.steps:
            return min(1.0, self.step / self.steps)
        return min(1.0, (time.time() - self.start) / (60 * self.minutes))

    def report(self, every: int, **values: float) -> None:
        """Print a line every `every` steps."""
        if self.step % every == 0:
            seconds = time.time() - self.start
            left = seconds * (1 - self.share) / max(self.share, 1e-6)
            text = " ".join(f"{k} {v:.4f}" for k, v in values.items())
            print(f"{self.name} step {self.step} {text} | {seconds:.0f}s, about {left:.0f}s left", flush=True)


def cosine(share: float, peak: float) -> float:
    """Learning rate: 5 % warm-up, then a cosine to 0."""
    return peak * (share / 0.05 if share < 0.05 else 0.5 * (1 + np.cos(np.pi * (share - 0.05) / 0.95)))
