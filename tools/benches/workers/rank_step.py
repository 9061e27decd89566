"""A training step of this project on one of several ranks, one thread each: base or tiny, global batch.

The launcher's variables say which rank this is. Rows are at the limits of the task "vqa".
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.workers.protocol import Step, claim_output, serve  # noqa: E402

ANSWERS = claim_output() if __name__ == "__main__" else sys.stdout

import torch  # noqa: E402

from mtvl import dist  # noqa: E402
from mtvl.backbones.clip_config import BUNDLED  # noqa: E402
from mtvl.cli import DEFAULT_RECIPE  # noqa: E402
from mtvl.config import load_run_config  # noqa: E402
from mtvl.engine import Engine, start  # noqa: E402
from mtvl.estimate.shapes import largest_batch, rows_of  # noqa: E402
from mtvl.model import build_model  # noqa: E402
from mtvl.optim import parameter_groups  # noqa: E402

BASE = (
    "backbone.preset=base", f"backbone.tokenizer={BUNDLED / 'tiny'}", "backbone.weights=", "backbone.tower=rn101",
    "backbone.tower_weights=", "petl.reduction=8",
)  # fmt: skip
SIZES: dict[str, tuple[str, ...]] = {"base": BASE, "tiny": ()}


def prepare() -> tuple[Step, str]:
    """This rank's share of a step of the default recipe, at either size."""
    size, rows = sys.argv[1], int(sys.argv[2])
    start("cpu")
    torch.set_num_threads(1)
    changes = (*SIZES[size], f"train.global_batch={rows}", f"train.micro_batch={rows}", "train.steps=100000")
    config = load_run_config(DEFAULT_RECIPE, ("vqa",), changes)
    model = build_model(config)
    batch = largest_batch(config, "vqa", model.backbone, rows_of(config, dist.world_size()))
    batch.uids, batch.denominator = tuple(map(str, range(len(batch.uids)))), float(rows)
    groups = parameter_groups(model.trainable(), model.tasks_of_parameters(), config.optim, model.added())
    engine = Engine(model, groups, config, 1)
    count = iter(range(100000))
    note = f"{rows} rows of a step over all ranks, {engine.num_trainable:,} trained"
    return lambda: engine.train_step(next(count), [batch]), note


if __name__ == "__main__":
    serve(prepare, ANSWERS)
