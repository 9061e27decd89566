"""Three real SIGKILLs on a real run, one of them while it saves; and the check itself finds what it should."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "check_kills.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tool_check_kills", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.multiproc
def test_three_kills_change_nothing(tmp_path: Path, tool: ModuleType) -> None:
    command = [sys.executable, str(TOOL), "--only", "0", "--kills", "3", "--keep", str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 runs ended with the same bits and the same log; kills: 3" in done.stdout, done.stdout

    straight, copy = tmp_path / "runs" / "undisturbed", tmp_path / "copy"
    shutil.copytree(straight, copy)
    assert tool.differences(copy, straight) == []
    tensors = load_file(copy / "export" / "adapter.safetensors")
    name = sorted(tensors)[0]
    tensors[name] = torch.nextafter(tensors[name], torch.tensor(9.0))  # the last bit
    save_file(tensors, copy / "export" / "adapter.safetensors")
    lines = (copy / "log.jsonl").read_text().splitlines()
    (copy / "log.jsonl").write_text("\n".join([*lines[:4], lines[3], *lines[5:]]) + "\n")
    (copy / "checkpoints" / "step_4.tmp").mkdir()
    found = " ".join(tool.differences(copy, straight))
    assert f"1 of {len(tensors)} tensors" in found and "the steps in the log are [1, 2, 3, 4, 4, 6" in found
    assert "step_4.tmp" in found
    record = json.loads(lines[7])
    lines[7] = json.dumps({**record, "loss": record["loss"] * (1 + 1e-15)})
    (copy / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert "the log differs from step 8 on" in " ".join(tool.differences(copy, straight))


@pytest.mark.parametrize(
    ("words", "said"), [(["--runs", "0"], "numbers above 0"), (["--keep", "{full}"], "holds files")]
)
def test_wrong_arguments(words: list[str], said: str, tmp_path: Path, tool: ModuleType, monkeypatch, capsys) -> None:
    (tmp_path / "x").write_text("")
    monkeypatch.setattr(sys, "argv", ["check_kills.py", *(w.format(full=tmp_path) for w in words)])
    assert tool.main() == 2 and said in capsys.readouterr().err
