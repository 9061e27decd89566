"""An export is read by a new process that has no DeepSpeed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from mtvl.config import RunConfig
from mtvl.export import write_export
from mtvl.model import build_model
from mtvl.types import Batch

FRESH = """
import sys
sys.modules["deepspeed"] = None  # whoever imports it gets an ImportError
import torch
from pathlib import Path
from mtvl.export import load_export
folder = Path(sys.argv[1])
model = load_export(folder)[0].eval()
worst = 0.0
for task, (batch, logits) in torch.load(folder / "expected.pt", weights_only=False).items():
    model.set_task(task)
    worst = max(worst, float((model.logits(batch) - logits).abs().max()))
print(worst)
"""


@torch.no_grad()
def test_a_fresh_process_needs_no_deepspeed(
    tiny_config: Callable[..., RunConfig], make_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    config = tiny_config({"name": "adapter", "share": "none"})
    model, random = build_model(config).eval(), torch.Generator().manual_seed(0)
    for parameter in model.trainable().values():  # as after some training: tasks differ
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    write_export(tmp_path / "export", model, config)
    expected = {}
    for task in config.tasks:
        model.set_task(task)
        expected[task] = (batch := make_batch(task, seed=7)), model.logits(batch)
    first, second, *_ = (logits for _, logits in expected.values())
    assert first.shape != second.shape or float((first - second).abs().max()) > 1e-3
    torch.save(expected, tmp_path / "expected.pt")
    done = subprocess.run([sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5  # measured: 0
