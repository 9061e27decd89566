"""The export of every registered method: written, read back, and refused when anything differs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtvl.config import RunConfig
from mtvl.errors import CheckpointError, ConfigError
from mtvl.export import ROWS, find_export, load_export, write_export
from mtvl.model import Model, build_model
from mtvl.types import Batch

MakeConfig = Callable[..., RunConfig]
MakeBatch = Callable[..., Batch]


def trained(config: RunConfig, make_batch: MakeBatch) -> Model:
    """A model after one step of every task, with slot rows that no seed gives again."""
    model = build_model(config).train()
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2)
    for task in config.tasks:
        model.set_task(task)
        model(make_batch(task)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for name, first in model.backbone.added_rows().items():
            rows = model.backbone.get_parameter(name)[first:]
            rows.copy_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(9)))
    return model.eval()


def test_round_trip(petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch, tmp_path: Path) -> None:
    config = tiny_config(petl, seed=4)
    model = trained(config, make_batch)
    write_export(tmp_path / "export", model, config, extra={"step": 3})
    again, read, content = load_export(tmp_path)
    assert read == config and content["step"] == 3
    assert content["trainable"] == model.plan.num_trainable
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    again.eval()
    for task in config.tasks:
        batch = make_batch(task, seed=7)
        model.set_task(task)
        again.set_task(task)
        assert torch.equal(model.logits(batch), again.logits(batch))


def test_it_is_on_the_disk_before_a_run_is_said_to_be_done(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DONE is flushed and proves that there is an export; a file that was only renamed may be empty after a power cut."""
    config, order, sync, replace = tiny_config(), [], os.fsync, os.replace

    def synced(number: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        sync(number)

    def replaced(source: Path, target: Path) -> None:
        assert source.name in order
        order.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_export(tmp_path / "export", build_model(config), config)
    assert [name for name in order if not name.endswith(".tmp")] == ["adapter.safetensors", "adapter.json", "export"]


def test_the_file_holds_the_trained_tensors_and_the_rows(
    petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch, tmp_path: Path
) -> None:
    config = tiny_config(petl)
    model = trained(config, make_batch)
    write_export(tmp_path, model, config)
    stored = load_file(str(tmp_path / "adapter.safetensors"))
    assert {n for n in stored if not n.startswith(ROWS)} == set(model.trainable())
    rows = {n: v for n, v in stored.items() if n.startswith(ROWS)}
    assert {n.removeprefix(ROWS) for n in rows} == set(model.backbone.added_rows())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]


def test_another_base_is_refused(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config()
    write_export(tmp_path, build_model(config), config)
    with pytest.raises(CheckpointError, match="trained on a backbone with fingerprint"):
        load_export(tmp_path, ["backbone.init_seed=1"])


def test_another_plan_is_refused(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config()
    write_export(tmp_path, build_model(config), config)
    with pytest.raises(CheckpointError, match="its plan is"):
        load_export(tmp_path, ["petl.bottleneck=3"])
    with pytest.raises(ConfigError, match="petl.bottlneck"):
        load_export(tmp_path, ["petl.bottlneck=3"])


def test_damaged_and_incomplete_files_are_refused(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config()
    write_export(tmp_path, build_model(config), config)
    weights, settings = tmp_path / "adapter.safetensors", tmp_path / "adapter.json"
    tensors, content = load_file(str(weights)), json.loads(settings.read_text())

    name = next(n for n in tensors if ".adapter." in n)
    save_file({n: v for n, v in tensors.items() if n != name}, str(weights))
    with pytest.raises(CheckpointError, match="tensors differ from the plan"):
        load_export(tmp_path)
    save_file({**tensors, "surplus": torch.zeros(1)}, str(weights))
    with pytest.raises(CheckpointError, match="surplus"):
        load_export(tmp_path)
    save_file({**tensors, name: tensors[name][:1].clone()}, str(weights))
    with pytest.raises(CheckpointError, match="tensors differ from the plan"):
        load_export(tmp_path)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_export(tmp_path)
    settings.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(CheckpointError, match="export format 99"):
        load_export(tmp_path)
    settings.write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter\.json is damaged"):
        load_export(tmp_path)


def test_a_folder_without_an_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run and no export"):
        find_export(tmp_path)
    with pytest.raises(CheckpointError, match="the folder does not exist"):
        find_export(tmp_path / "absent")


def test_missing_trained_tensors_are_not_written(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config()
    model = build_model(config)
    state = {n: p.detach() for n, p in model.trainable().items()}
    state.pop(next(iter(state)))
    with pytest.raises(CheckpointError, match="trained tensors are missing"):
        write_export(tmp_path, model, config, state=state)
    assert not list(tmp_path.iterdir())


def test_another_alpha_is_refused(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config({"name": "lora", "rank": 4})
    write_export(tmp_path, build_model(config), config)
    assert load_export(tmp_path, ["petl.alpha=32"])[1].petl["alpha"] == 32
    with pytest.raises(CheckpointError, match="its plan is .*, this recipe makes"):
        load_export(tmp_path, ["petl.alpha=64"])
