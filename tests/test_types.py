"""The travelling objects: frozen where they say so, complete when they move."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from mtvl.errors import DataError, MtvlError
from mtvl.sites import LINEAR_KINDS, Site
from mtvl.types import Batch, Example, Segment, Target, Visual


def test_examples_are_frozen_and_hold_no_tensors() -> None:
    example = Example("7", "vqa", (Segment("question", "what?"),), Visual(("/a.png",)), (Target("red", 0.9),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        example.uid = "8"  # type: ignore[misc]
    assert not [v for v in vars(example).values() if isinstance(v, torch.Tensor)]


def test_moving_a_batch_moves_every_tensor_and_keeps_the_rest(make_batch: Callable[..., Batch]) -> None:
    batch = dataclasses.replace(make_batch("gqa", loss="token_mean"), loss_weight=0.5)
    moved = batch.to("meta")
    tensors = [k for k, v in vars(batch).items() if isinstance(v, torch.Tensor)]
    assert tensors == [
        "source_ids", "source_mask", "features", "target_ids", "target_weights", "feature_mask", "choice_ids",
        "answer_scores", "item_ids", "choice_weights",
    ]  # fmt: skip
    assert {getattr(moved, k).device.type for k in tensors} == {"meta"}
    assert {getattr(batch, k).device.type for k in tensors} == {"cpu"}
    for name in ("task", "uids", "loss", "label_smoothing", "denominator", "loss_weight", "feature_kind"):
        assert getattr(moved, name) == getattr(batch, name)


def test_a_data_error_says_where() -> None:
    error = DataError("answer is missing", file="train.json", row=3)
    assert str(error) == "train.json, row 3: answer is missing" and isinstance(error, MtvlError)
    assert str(DataError("empty", file="train.json")) == "train.json: empty"
    assert str(DataError("empty")) == "empty"


def test_sites_know_their_kinds() -> None:
    assert all(Site("x", kind, "encoder", 0).is_linear for kind in LINEAR_KINDS)
    assert not Site("x", "norm", "encoder", 0).is_linear
    with pytest.raises(ValueError, match="unknown site kind 'self_attn.qkv' at x"):
        Site("x", "self_attn.qkv", "encoder", 0)
