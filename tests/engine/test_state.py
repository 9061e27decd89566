"""Random generators through tensors, and copies in the machine's memory."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mtvl.engine.host import HostCopies
from mtvl.engine.state import random_state, set_random_state

WITHOUT_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, WITHOUT_GPU])])
def test_host_copies_stay_as_they_were(device: str) -> None:
    """Of parts of tensors too, and in their own types; on a GPU what is queued behind a copy does not reach it."""
    whole, other = (torch.rand(2**10, 2**10, device=device) for _ in range(2))
    sources = {"whole": whole, "columns": other[:, 3:5], "numbers": torch.tensor([7, 8], device=device)}
    expected = {name: tensor.cpu().clone() for name, tensor in sources.items()}
    copies = HostCopies()
    for name, tensor in sources.items():
        copies.add(name, tensor)
        tensor.zero_()
    copies.wait()
    for name, tensor in copies.tensors.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
        assert tensor.is_contiguous() and tensor.is_pinned() == (device == "cuda")
