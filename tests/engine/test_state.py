"""Random generators through tensors."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mtvl.engine.state import random_state, set_random_state


def draws() -> list[float]:
    """Draws from all generators, the ones that keep a second normal value in store included."""
    return [
        random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.randn(())),
        random.gauss(0, 1), np.random.randn(), *torch.rand(3).tolist(),
    ]  # fmt: skip


@pytest.mark.parametrize("drawn_before", [0, 1, 2])
def test_generators_continue_where_they_were(drawn_before: int) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    for _ in range(drawn_before):  # an odd number of normal draws leaves one in store
        random.gauss(0, 1), np.random.randn(), torch.randn(5)
    state = random_state()
    expected = draws()
    assert draws() != expected
    set_random_state(state)
    assert draws() == expected
