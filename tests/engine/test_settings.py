"""Engine files against recipes, and the process around the engine."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import PROJECT_ROOT, free_port, launch, leftovers, rank_environment

from mtvl.cli import DEFAULT_RECIPE
from mtvl.config import EngineConfig, OptimConfig, RunConfig, TrainConfig, load_run_config
from mtvl.engine import process
from mtvl.engine.settings import (
    OWNED_BY_RECIPE,
    check_engine,
    check_precision,
    deepspeed_settings,
    read_engine_file,
)
from mtvl.errors import ConfigError, EngineError

FILES = sorted((PROJECT_ROOT / "ds_configs").glob("*.json"))


def config(file: str, precision: str = "fp32", clip: float = 0.0) -> RunConfig:
    return RunConfig(
        tasks=("a",),
        engine=EngineConfig(file),
        train=TrainConfig(micro_batch=4, precision=precision),
        optim=OptimConfig(clip_norm=clip),
    )


def write(folder: Path, **content: object) -> str:
    file = folder / "engine.json"
    file.write_text(json.dumps(content))
    return str(file)


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_every_committed_file_is_usable(file: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    values = read_engine_file(str(file))
    precision = next((p for p in ("bf16", "fp16") if p in file.stem), "fp32")
    settings = deepspeed_settings(config(str(file), precision), 3, 1)
    assert DeepSpeedConfig(settings).zero_config.stage == int(file.stem.removeprefix("zero")[0])
    assert not set(values) & set(OWNED_BY_RECIPE)


def test_every_file_has_a_row_in_the_readme() -> None:
    rows = [r for r in (FILES[0].parent / "README.md").read_text().splitlines() if r.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)\.json`", row.split("|")[1])]
    assert sorted(named) == [f.stem for f in FILES]
    assert all(row.count("|") == 5 for row in rows)


def test_fp16_on_a_cpu_is_refused_by_us() -> None:
    given = config("ds_configs/zero2_fp16.json", "fp16")
    with pytest.raises(EngineError, match="fp16 trains on GPUs alone.*train.precision=bf16"):
        check_precision(given.train.precision, "cpu")
    check_precision("fp16", "cuda")
    assert deepspeed_settings(given, 1, 1)["fp16"]["enabled"]


def test_the_bucket_is_no_larger_than_what_is_trained(tmp_path: Path) -> None:
    def bucket(file: str, trained: int) -> int:
        return deepspeed_settings(config(file), 1, 1, trained)["zero_optimization"].get("reduce_bucket_size", 0)

    assert bucket("ds_configs/zero2.json", 1000) == bucket("ds_configs/zero3.json", 1000) == 1000
    assert bucket("ds_configs/zero2.json", 10**10) == 500_000_000  # DeepSpeed's own
    assert bucket("ds_configs/zero0.json", 1000) == 0
    own = write(tmp_path, zero_optimization={"stage": 2, "reduce_bucket_size": 77})
    assert bucket(own, 1000) == 77


@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_recipe_decides(clip: float) -> None:
    settings = deepspeed_settings(config("ds_configs/zero2.json", clip=clip), 3, 2)
    assert settings["gradient_clipping"] == clip  # DeepSpeed's own default is 1.0
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["gradient_accumulation_steps"] == 3
    assert settings["train_batch_size"] == 24


@pytest.mark.parametrize("key", OWNED_BY_RECIPE)
def test_keys_of_the_recipe_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(EngineError, match=f"'{key}' belongs to the recipe"):
        read_engine_file(write(tmp_path, zero_optimization={"stage": 1}, **{key: 1}))


def test_slips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="unknown key 'zero_optimisation'; did you mean 'zero_optimization'"):
        read_engine_file(write(tmp_path, zero_optimisation={"stage": 2}))
    with pytest.raises(EngineError, match="did you mean 'zero2.json'"):
        read_engine_file("ds_configs/zero22.json")
    for content in (b"{", b'{"bf16": "\xff"}', b"[" * 100_000):
        (tmp_path / "engine.json").write_bytes(content)
        with pytest.raises(EngineError, match="not valid JSON"):
            read_engine_file(str(tmp_path / "engine.json"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"zero_optimization": 2}, "'zero_optimization' expects an object with keys of its own, found 2"),
        ({"zero_optimization": {"stage": "2"}}, "'zero_optimization.stage' expects 0, 1, 2 or 3, found '2'"),
        ({"zero_optimization": {"stage": 4}}, "expects 0, 1, 2 or 3, found 4"),
        ({"zero_optimization": {"stage": True}}, "expects 0, 1, 2 or 3, found True"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "'offload_optimizer' expects an object"),
        ({"bf16": True}, "'bf16' expects an object"),
        ({"zero_optimization": {"stag": 2}}, "'zero_optimization.stag': unknown key; did you mean 'stage'"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"devise": "cpu"}}}, "'zero_optimization.offload_param.devise': unknown"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "big"}}, "'zero_optimization.reduce_bucket_size': .*found 'big'"),
        ({"bf16": {"enable": True}}, "'bf16.enable': unknown key; did you mean 'enabled'"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "'zero_optimization.compute_grad_norm' is off"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "'zero_optimization': .*only with ZeRO Stage 1 or 2$"),
        ({"bf16": {"enabled": False, "check_grad_overflow": False}}, "'bf16.check_grad_overflow' is off"),
        ({"data_types": {"grad_accum_type": "fp32"}}, "'data_types.grad_accum_type': unknown key; did you mean 'grad_accum_dtype'"),
    ],
)  # fmt: skip
def test_wrong_sections_are_refused_before_anything_is_built(tmp_path: Path, content: dict, expected: str) -> None:
    with pytest.raises(EngineError, match=expected):
        check_engine(config(write(tmp_path, **content)), "cpu")


def test_older_releases_know_fewer_types(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime import constants

    monkeypatch.delattr(constants, "KEEP_IN_FP32_MODULES", raising=False)
    check_engine(config("ds_configs/zero2.json"), "cpu")


def test_what_the_recipe_contradicts_is_refused_before_anything_is_built() -> None:
    for file in FILES:
        precision = next((p for p in ("bf16", "fp16") if p in file.stem), "fp32")
        check_engine(config(str(file), precision), "cuda")
    with pytest.raises(EngineError, match="'train.precision' is bf16 but .* says fp32"):
        check_engine(config("ds_configs/zero2.json", "bf16"), "cpu")
    with pytest.raises(EngineError, match="fp16 trains on GPUs alone"):
        check_engine(config("ds_configs/zero2_fp16.json", "fp16"), "cpu")


def test_there_is_no_other_recompute_to_ask_for(tmp_path: Path) -> None:
    """DeepSpeed's own is reentrant, as torch's was: adapters behind a frozen first layer would get no gradient."""
    with pytest.raises(EngineError, match="unknown key 'activation_checkpointing'"):
        read_engine_file(write(tmp_path, activation_checkpointing={"partition_activations": True}))
    with pytest.raises(ConfigError, match=r"'train\.recompute' expects bool, found 'reentrant'"):
        load_run_config(DEFAULT_RECIPE, ["vqa"], ["train.recompute=reentrant"])


def test_precision_must_agree(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="'train.precision' is bf16 but .* says fp32"):
        deepspeed_settings(config("ds_configs/zero2.json", "bf16"), 1, 1)
    with pytest.raises(EngineError, match="'train.precision' is fp32 but .* says bf16"):
        deepspeed_settings(config("ds_configs/zero2_bf16.json"), 1, 1)
    with pytest.raises(EngineError, match="bf16 needs ZeRO stage 2 or 3, found stage 1"):
        deepspeed_settings(
            config(write(tmp_path, zero_optimization={"stage": 1}, bf16={"enabled": True}), "bf16"), 1, 1
        )
    with pytest.raises(EngineError, match="nvme"):
        file = write(tmp_path, zero_optimization={"stage": 3, "offload_optimizer": {"device": "nvme"}})
        deepspeed_settings(config(file), 1, 1)


def test_micro_steps_must_fit_the_slots() -> None:
    from toy_model import Toy, toy_groups

    from mtvl.config import MixtureConfig
    from mtvl.engine import Engine

    model = Toy()
    two_slots = dataclasses.replace(config("ds_configs/zero0.json"), mixture=MixtureConfig(slots=2))
    with pytest.raises(EngineError, match="3 micro-steps cannot be shared evenly by 2 slots"):
        Engine(model, toy_groups(model), two_slots, 3)


def test_nothing_to_train_is_an_error_before_deepspeed() -> None:
    code = """
import sys
from toy_model import Toy
from mtvl.config import RunConfig
from mtvl.engine import Engine
from mtvl.errors import EngineError
model = Toy().requires_grad_(False)
try:
    Engine(model, [], RunConfig(tasks=("a",)), 1)
except EngineError as error:
    assert "nothing to train" in str(error)
    assert "deepspeed" not in sys.modules
    print("refused")
"""
    assert "refused" in plain(code).stdout


def plain(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process without launcher variables."""
    base = rank_environment(0, 1, 1)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR"):
        del base[name]
    base["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    return subprocess.run(
        [sys.executable, "-c", code], env={**base, **environment}, capture_output=True, text=True, timeout=120
    )


START = """
import logging, os, sys
from mtvl.engine import finish, start
from mtvl import dist
device = start("cpu", local_rank=3)
assert start() is device
dist.barrier()
print("device", device, "rank", dist.rank(), "of", dist.world_size(), "local", os.environ["LOCAL_RANK"])
print("extensions", os.environ["TORCH_EXTENSIONS_DIR"], "prefix", sys.prefix)
import torch.distributed as d
print("backend", d.get_backend())
finish(CODE)
"""


def test_plain_process_starts_and_ends_with_its_code() -> None:
    end = plain(START.replace("CODE", "7"))
    assert end.returncode == 7, end.stderr
    assert "device cpu rank 0 of 1 local 0" in end.stdout and "backend gloo" in end.stdout
    words = end.stdout.split()
    assert words[words.index("extensions") + 1].startswith(words[words.index("prefix") + 1])
    assert "WARNING" not in end.stdout + end.stderr


def test_launcher_variables_win_and_nothing_is_left_after_a_kill(tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    end = "sys.stdout.flush()\nos.kill(os.getpid(), 9) if dist.rank() else finish(5)"
    script.write_text(START.replace("finish(CODE)", end))
    ends = launch(script, 2, timeout_seconds=100)  # fails when anything is left in shared memory
    assert [e.code for e in ends] == [5, -9], ends
    assert "rank 0 of 2 local 0" in ends[0].output and "rank 1 of 2 local 1" in ends[1].output


def test_ranks_that_outlive_their_time_are_ended_and_shown(tmp_path: Path) -> None:
    """And the next launch starts from nothing: another process, its own arguments, its own folder to import from."""
    script = tmp_path / "rank.py"
    script.write_text("import os, sys, time\nprint('rank', os.environ['RANK'], os.getpid(), sys.argv[1:], sys.path[0], os.environ.get('MORE'), flush=True)\n"
                      "time.sleep(100 * int(os.environ['RANK']))\nsys.exit(3)\n")  # fmt: skip
    with pytest.raises(AssertionError, match=r"(?s)no end within 4 s.*rank 1: exit code -9\nrank 1"):
        launch(script, 2, ["first"], timeout_seconds=4)
    (one,) = launch(script, 1, ["second"], environment={"MORE": "one"})
    words = one.output.split()
    assert (one.code, words[3:]) == (3, ["['second']", str(tmp_path), "one"]) and int(words[2]) != os.getpid()


def test_leftovers_would_be_noticed(tmp_path: Path) -> None:
    script = tmp_path / "leaves.py"
    script.write_text("from mtvl.engine.process import *\n(SHARED_MEMORY / shared_memory_name()).write_text('x')\n")
    port = free_port()
    with pytest.raises(AssertionError, match="left in shared memory"):
        launch(script, 1, port=port)
    assert leftovers(port) == []


def test_incomplete_launcher_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(EngineError, match="set RANK but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        process._set_launcher_variables(None)
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "h"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    process._set_launcher_variables(1)
    assert os.environ["LOCAL_RANK"] == "1"
    process._set_launcher_variables(0)
    assert os.environ["LOCAL_RANK"] == "1"  # the environment wins
    for name, value in (
        ("RANK", "2"),
        ("RANK", "one"),
        ("WORLD_SIZE", "0"),
        ("LOCAL_RANK", "-1"),
        ("MASTER_PORT", "99999"),
    ):
        with (
            monkeypatch.context() as slip,
            pytest.raises(EngineError, match=f"{name} expects a number .*, found '{value}'"),
        ):
            slip.setenv(name, value)
            process._set_launcher_variables(None)


def test_a_single_process_takes_a_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also below a launcher, whose fixed port another job of this machine may have."""
    with socket.socket() as other_job:
        other_job.bind(("127.0.0.1", 0))
        other_job.listen()
        taken = str(other_job.getsockname()[1])
        for given in (
            {},
            {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken},
        ):
            for name in (*process.LAUNCHER_VARIABLES, "LOCAL_RANK"):
                monkeypatch.delenv(name, raising=False)
            for name, value in given.items():
                monkeypatch.setenv(name, value)
            process._set_launcher_variables(None)
            assert os.environ["WORLD_SIZE"] == "1" and os.environ["MASTER_PORT"] != taken
            with socket.socket() as own:
                own.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))


def test_only_own_shared_memory_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "4711")):
        monkeypatch.setenv(name, value)
    prefix = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_"
    for name in ("4711_0", "4711_1", "4712_1"):
        (tmp_path / (prefix + name)).write_text("x")
    process.remove_shared_memory(tmp_path)
    process.remove_shared_memory(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [prefix + "4711_0", prefix + "4712_1"]
