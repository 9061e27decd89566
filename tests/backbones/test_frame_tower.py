"""Towers for video frames: shapes, quarters in reading order, weights on disk."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mtvl.backbones.frame_tower import FrameTower, quarters
from mtvl.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(("row", "col"), [(0, 0), (1, 6), (5, 1), (6, 6)])
def test_a_quarter_holds_the_largest_value_of_its_part_of_the_grid(row: int, col: int) -> None:
    grid = torch.zeros(1, 49, 2)
    grid[0, row * 7 + col] = 1.0
    found = quarters(grid)[0, :, 0]
    home = (row > 3) * 2 + (col > 3)
    assert found.argmax() == home and found[home] > 0.1
    assert all(value == 0 for i, value in enumerate(found.tolist()) if i != home)


def test_quarters_of_a_constant_grid_are_that_constant() -> None:
    torch.testing.assert_close(quarters(torch.full((2, 49, 3), 0.7)), torch.full((2, 4, 3), 0.7))


def test_the_tiny_tower_gives_four_tokens_a_frame() -> None:
    tower = FrameTower("tiny")
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue", "red")]
    found = tower.encode(frames)
    assert found.shape == (3, *tower.grid) == (3, 4, 64)
    torch.testing.assert_close(found[0], found[2])
    assert not torch.allclose(found[0], found[1]) and not any(p.requires_grad for p in tower.parameters())


def test_vit_b32_gives_one_embedding_of_512_and_crops_the_middle() -> None:
    tower = FrameTower("vit_b32")
    wide = Image.new("RGB", (448, 224), "white")
    wide.paste(Image.new("RGB", (112, 224), "black"), (0, 0))  # outside the middle square
    found = tower.encode([wide, Image.new("RGB", (224, 224), "white")])
    assert found.shape == (2, 1, 512) == (2, *tower.grid)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert tower.preprocess([wide]).shape == (1, 3, 224, 224)


def test_weights_are_read_back_and_change_the_fingerprint(tmp_path) -> None:
    first, second = FrameTower("tiny"), FrameTower("tiny")
    assert first.fingerprint != second.fingerprint  # both random
    save_file(first.state_dict(), str(tmp_path / "w.safetensors"))
    assert FrameTower("tiny", str(tmp_path / "w.safetensors")).fingerprint == first.fingerprint
    state = {k: v for k, v in first.state_dict().items() if k != "head.weight"}
    save_file(state, str(tmp_path / "part.safetensors"))
    with pytest.raises(CheckpointError, match=r"not a tiny frame tower: missing \['head.weight'\]"):
        FrameTower("tiny", str(tmp_path / "part.safetensors"))
    with pytest.raises(CheckpointError, match="no frame tower weights at"):
        FrameTower("tiny", str(tmp_path / "none.safetensors"))
    with pytest.raises(ConfigError, match="vit_b32"):
        FrameTower("vitb32")
