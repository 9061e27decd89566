"""A training step of this project at BART-base size with random weights: METHOD [key=value ...]."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.workers.protocol import Step, claim_output, serve  # noqa: E402

ANSWERS = claim_output() if __name__ == "__main__" else sys.stdout

import deepspeed  # noqa: E402, F401  # before memory is counted
import torch  # noqa: E402

from mtvl.backbones.clip_config import BUNDLED  # noqa: E402
from mtvl.cli import DEFAULT_RECIPE  # noqa: E402
from mtvl.config import load_run_config  # noqa: E402
from mtvl.engine import Engine, start  # noqa: E402
from mtvl.model import build_model  # noqa: E402
from mtvl.optim import parameter_groups  # noqa: E402
from mtvl.types import Batch  # noqa: E402

ROWS, SOURCE, TARGET, GRID = 16, 20, 6, (36, 2048)


def prepare() -> tuple[Step, str]:
    """The whole step of the engine."""
    engine, batch = build(*sys.argv[1:])
    count = iter(range(100000))
    return lambda: engine.train_step(next(count), [batch]), f"{engine.num_trainable:,} trained"


def build(method: str, *changes: str) -> tuple[Engine, Batch]:
    """The engine of a method, and 16 rows of 36 visual and 20 text tokens in, 6 out."""
    petl = [f"petl.name={method}"] + ["petl.reduction=8"] * (method == "adapter")
    config = load_run_config(DEFAULT_RECIPE, ("vqa",), [
        "backbone.preset=base", f"backbone.tokenizer={BUNDLED / 'tiny'}", "backbone.weights=", "backbone.tower=rn101",
        "backbone.tower_weights=", "backbone.dropout=0.1", "data.text_only=true", f"train.global_batch={ROWS}",
        f"train.micro_batch={ROWS}", "train.steps=100000", *petl, *changes,
    ])  # fmt: skip
    start()
    model = build_model(config)
    engine = Engine(model, parameter_groups(model.trainable(), model.tasks_of_parameters(), config.optim), config, 1)
    torch.manual_seed(0)
    words = torch.randint(10, 1000, (ROWS, SOURCE))
    batch = Batch(
        "vqa", tuple(map(str, range(ROWS))), words, torch.ones_like(words, dtype=torch.bool), torch.rand(ROWS, 1, *GRID),
        torch.randint(10, 1000, (ROWS, TARGET)), torch.ones(ROWS), denominator=ROWS,
    )  # fmt: skip
    return engine, batch


if __name__ == "__main__":
    serve(prepare, ANSWERS)
