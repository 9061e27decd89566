"""Contract tests run over the registries: once for every backbone, and with `petl` for every method and way of sharing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from mtvl.backbones import BACKBONES
from mtvl.config import RunConfig
from mtvl.petl import METHODS
from mtvl.petl.share import SHARES
from mtvl.types import Batch


def variants() -> list[dict[str, Any]]:
    """A petl section for every method and every way of sharing that its options know."""
    found: list[dict[str, Any]] = []
    for name in METHODS:
        options = {f.name for f in dataclasses.fields(METHODS.load(name).Config)}
        found += [{"name": name, "share": share} for share in SHARES] if "share" in options else [{"name": name}]
    return found


@pytest.fixture(params=variants(), ids=lambda section: "-".join(section.values()))
def petl(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The petl section of one variant."""
    return dict(request.param)


@pytest.fixture(params=list(BACKBONES))
def backbone_name(request: pytest.FixtureRequest) -> str:
    """Name of one registered backbone."""
    return str(request.param)


@pytest.fixture
def tiny_config(tiny_config: Callable[..., RunConfig], backbone_name: str) -> Callable[..., RunConfig]:
    """The general `tiny_config` on this backbone."""
    return partial(tiny_config, backbone=backbone_name)


@pytest.fixture
def make_batch(make_batch: Callable[..., Batch], backbone_name: str) -> Callable[..., Batch]:
    """The general `make_batch` in this backbone's shapes."""
    return partial(make_batch, backbone=backbone_name)
