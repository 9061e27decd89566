"""Weights of a video's frames for a text."""

from __future__ import annotations

import pytest
import torch

from mtvl.errors import ConfigError
from mtvl.objectives.frames import frame_weights, key_scales, weigh_frames


def test_the_nearest_frame_has_the_largest_weight() -> None:
    text = torch.tensor([[1.0, 0.0]])
    frames = torch.tensor([[[0.0, 3.0], [2.0, 0.0], [1.0, 1.0]]])
    for rule, total in (("paper", 1.0), ("cosine", 1.0), ("as_coded", 3.0)):
        weights = frame_weights(frames, text, rule)
        assert float(weights.sum()) == pytest.approx(total) and int(weights.argmax()) == 1
    assert torch.allclose(frame_weights(frames, text, "paper"), torch.softmax(torch.tensor([[0.0, 2.0, 1.0]]), 1))
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        frame_weights(frames, text, "cosin")


def test_class_tokens_keep_their_size() -> None:
    tokens, weights = torch.ones(1, 2, 3, 4), torch.tensor([[0.25, 0.75]])
    weighted = weigh_frames(tokens, weights)
    assert weighted[0, :, 0].unique().tolist() == [1.0] and weighted[0, :, 1:, 0].tolist() == [[0.25] * 2, [0.75] * 2]
    assert key_scales(weights, 3).tolist() == [[[1.0, 0.25, 0.25], [1.0, 0.75, 0.75]]]
