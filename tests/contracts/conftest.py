"""Contract tests run over the registries: once for every backbone, and with `petl` for every method, shared and private."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from mtvl.backbones import BACKBONES
from mtvl.config import RunConfig
from mtvl.petl import METHODS
from mtvl.petl.share import SHARES, WHOLE
from mtvl.types import Batch

# Options that change what a method is made of, beside the ways of sharing.
FURTHER = (
    {"name": "compacter", "share": "none", "division": 4, "rank": 1, "share_rule": True, "bottleneck": 8},
    {"name": "projection", "train_norms": True},
)
# Language models without bias vectors have nothing that this method could train; test_adapting.py holds that it says so.
# The others ask for blocks or heads that these backbones do not offer; tests/petl/test_blip_methods.py holds that.
REFUSED = (
    ("clip_t5", "bitfit"),
    *((b, "probe") for b in ("clip_bart", "clip_t5")),
    *((b, m) for b in ("clip_bart", "clip_t5", "clip_vil") for m in ("uniadapter", "unitrans")),
    # Heads are trained by pairs, not by answers; BLIP has no projection of features.
    *(("blip", m) for m in ("probe", "projection")),
)


def variants() -> list[dict[str, Any]]:
    """A petl section for every method, shared and private, and some more; half-shared ones for `adapter` alone.

    Halves are one combinator's work and the same for every method; tests/petl looks at them elsewhere.
    """
    found: list[dict[str, Any]] = []
    for name in METHODS:
        has_share = "share" in {f.name for f in dataclasses.fields(METHODS.load(name).Config)}
        shares = SHARES if name == "adapter" else WHOLE
        found += [{"name": name, "share": share} for share in shares] if has_share else [{"name": name}]
    return [*found, *FURTHER]


def label(section: dict[str, Any]) -> str:
    """A short name of a variant."""
    further = [f"{k}={v}" for k, v in section.items() if k not in ("name", "share")]
    return "-".join([section["name"], *([section["share"]] if "share" in section else []), *further])


def pairs() -> list[tuple[str, dict[str, Any]]]:
    """The first backbone with every variant, the others with every method once, with private parts where it has any.

    Sharing is the work of one combinator, whatever the backbone.
    """
    first, *others = BACKBONES
    once = [p for p in variants() if p.get("share", "none") == "none" and p not in FURTHER]
    found = [(first, p) for p in variants()] + [(b, p) for b in others for p in once]
    return [(b, p) for b, p in found if (b, p["name"]) not in REFUSED]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take `petl` run over all pairs, tests that take a backbone alone over all backbones."""
    if "petl" in metafunc.fixturenames:
        names = [f"{backbone}-{label(petl)}" for backbone, petl in pairs()]
        metafunc.parametrize(("backbone_name", "petl"), pairs(), ids=names)
    elif "backbone_name" in metafunc.fixturenames:
        metafunc.parametrize("backbone_name", list(BACKBONES))


@pytest.fixture
def tiny_config(tiny_config: Callable[..., RunConfig], backbone_name: str) -> Callable[..., RunConfig]:
    """The general `tiny_config` on this backbone."""
    return partial(tiny_config, backbone=backbone_name)


@pytest.fixture
def make_batch(make_batch: Callable[..., Batch], backbone_name: str) -> Callable[..., Batch]:
    """The general `make_batch` in this backbone's shapes."""
    return partial(make_batch, backbone=backbone_name)
