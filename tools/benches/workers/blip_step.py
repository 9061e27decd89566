"""A training step of BLIP on questions with random weights and pixels: [key=value ...] over BLIP's recipe for VQA."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.workers.protocol import Step, claim_output, serve  # noqa: E402

ANSWERS = claim_output() if __name__ == "__main__" else sys.stdout

import deepspeed  # noqa: E402, F401  # before memory is counted
import torch  # noqa: E402

from mtvl.cli import RECIPES  # noqa: E402
from mtvl.config import load_run_config  # noqa: E402
from mtvl.engine import Engine, start  # noqa: E402
from mtvl.model import build_model  # noqa: E402
from mtvl.optim import parameter_groups  # noqa: E402
from mtvl.types import Batch  # noqa: E402

ROWS, SOURCE, LISTED, TARGET, SIDE, THREADS = 8, 12, 3, 4, 224, 2
WORDS = 100  # ids are below the vocabulary of the smallest model too


def prepare() -> tuple[Step, str]:
    """8 pictures of 224 pixels, questions of 12 tokens with three answers of 4; the whole step of the engine."""
    config = load_run_config(RECIPES / "blip" / "base_vqa.yaml", ("vqa",), [
        "backbone.weights=", f"backbone.image_size={SIDE}", f"train.global_batch={ROWS}", f"train.micro_batch={ROWS}",
        "train.steps=100000", *sys.argv[1:],
    ])  # fmt: skip
    torch.set_num_threads(THREADS)
    start()
    model = build_model(config)
    engine = Engine(model, parameter_groups(model.trainable(), model.tasks_of_parameters(), config.optim), config, 1)
    torch.manual_seed(0)
    words, answers = torch.randint(4, WORDS, (ROWS, SOURCE)), torch.randint(4, WORDS, (ROWS, LISTED, TARGET))
    cells = model.backbone.vision_shape.image_size**2
    batch = Batch(
        "vqa", tuple(map(str, range(ROWS))), words, torch.ones_like(words, dtype=torch.bool), torch.randn(ROWS, 1, cells, 3),
        answers[:, 0], torch.ones(ROWS), loss="answers", label_smoothing=0.1, denominator=ROWS, choice_ids=answers,
        choice_weights=torch.full((ROWS, LISTED), 1 / LISTED),
    )  # fmt: skip
    count = iter(range(100000))
    return lambda: engine.train_step(next(count), [batch]), f"{engine.num_trainable:,} trained"


if __name__ == "__main__":
    serve(prepare, ANSWERS)
