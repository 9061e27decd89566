"""Which frames of a video a text asks for: weights without parameters."""

from __future__ import annotations

import torch
from torch import nn

from mtvl.errors import ConfigError, near_names

FRAME_WEIGHTS = ("off", "paper", "cosine", "as_coded")


def check_frame_weights(rule: str) -> None:
    """ConfigError unless `rule` is one of FRAME_WEIGHTS."""
    if rule not in FRAME_WEIGHTS:
        raise ConfigError(f"unknown rule of frame weights {rule!r}; {near_names(rule, FRAME_WEIGHTS)}")


def frame_weights(frames: torch.Tensor, text: torch.Tensor, rule: str) -> torch.Tensor:
    """frames (B, N, E), text (B, E) -> weights (B, N), summing to 1 ("as_coded": to N).

    "paper": softmax of the plain product of both class tokens; "cosine": of their cosine; "as_coded": N times the softmax
    of a quarter of the cosine, without gradient. *Source:* UniAdapter, Eq. 7; its released code.
    """
    check_frame_weights(rule)
    if rule == "paper":
        return torch.softmax(torch.einsum("bne,be->bn", frames, text), 1)
    cosine = torch.einsum("bne,be->bn", nn.functional.normalize(frames, dim=-1), nn.functional.normalize(text, dim=-1))
    if rule == "cosine":
        return torch.softmax(cosine, 1)
    return frames.shape[1] * torch.softmax(cosine.detach() / 4, 1)


def weigh_frames(tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """tokens (B, N, P, D) with every frame's tokens but its class token times its weight (B, N).

    *Source:* UniAdapter, Eq. 8.
    """
    return torch.cat([tokens[:, :, :1], tokens[:, :, 1:] * weights[:, :, None, None].to(tokens.dtype)], 2)


def key_scales(weights: torch.Tensor, tokens: int) -> torch.Tensor:
    """Weights (B, N) for each of `tokens` tokens of a frame (B, N, P), 1 at class tokens (P = 0)."""
    scales = weights[..., None].expand(*weights.shape, tokens).clone()
    scales[..., 0] = 1.0
    return scales
