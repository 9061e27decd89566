"""What the matrix is made of: names of cells, which ones there are, and when one has passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TINY, TINY_BLIP = "launch/recipes/tiny.yaml", "launch/recipes/tiny_blip.yaml"
_SMALL_BLIP = [
    "backbone.image_size=32", "backbone.text.dropout=0.0", "backbone.vision.drop_path=0.0", "backbone.vision.layers=2",
    "backbone.text.layers=2", "backbone.text.width=32", "backbone.text.ffn=64", "backbone.vision.width=32", "data.workers=0",
]  # fmt: skip

# Whole runs of a recipe: the recipe, and what is different.
RUNS: dict[str, tuple[str, list[str]]] = {
    "single": (TINY, ["backbone.dropout=0.0", "petl.share=all"]),
    "half_up": (TINY, ["backbone.dropout=0.0", "petl.share=up"]),
    "half_down": (TINY, ["backbone.dropout=0.0", "petl.share=down"]),
    "multiple": (TINY, ["backbone.dropout=0.0", "petl.share=none"]),
    "hyperformer": (TINY, ["backbone.dropout=0.0", "petl.name=hyperformer"]),
    "prompt": (TINY, ["backbone.dropout=0.0", "petl.name=prompt", "petl.share=none", "petl.length=8"]),
    "uniadapter": (TINY_BLIP, [*_SMALL_BLIP, "petl={name: uniadapter, bottleneck: 8, share: none}"]),
}

# Three steps of a method, on a tiny random backbone: its petl section, with parts of single tasks where it can have them.
STEPS: dict[str, dict[str, Any]] = {
    "adapter": {"name": "adapter", "bottleneck": 4, "share": "up"},
    "parallel_adapter": {"name": "parallel_adapter", "bottleneck": 4, "share": "down"},
    "adapter_prompt": {"name": "adapter_prompt", "bottleneck": 4, "length": 3, "width": 7},
    "hyperformer": {"name": "hyperformer", "bottleneck": 4, "task_width": 6, "hidden": 5, "code": 3},
    "compacter": {"name": "compacter", "division": 4, "rank": 1, "share_rule": True, "bottleneck": 8, "share": "none"},
    "default_compacter": {"name": "compacter", "bottleneck": 8, "share": "none"},
    "prompt": {"name": "prompt", "length": 3, "width": 7, "share": "none"},
    "prefix": {"name": "prefix", "length": 3, "share": "none"},
    "lora": {"name": "lora", "rank": 3, "dropout": 0.0, "share": "down"},
    "ia3": {"name": "ia3", "share": "none"},
    "vcra": {"name": "vcra", "rank": 3, "share": "none"},
    # what adds nothing, so that all tasks train the same parameters
    "full": {"name": "full"},
    "projection": {"name": "projection", "train_norms": True},
    "bitfit": {"name": "bitfit"},
    # on CLIP-T5, whose table of positions is used outside the attention that holds it
    "t5_adapter": {"name": "adapter", "bottleneck": 4, "share": "none"},
    "t5_prefix": {"name": "prefix", "length": 3, "share": "none"},
    # on CLIP-ViL, whose head is trained with every method
    "vil_adapter": {"name": "adapter", "bottleneck": 4, "share": "none"},
    # on BLIP, whose banks are used by blocks of three towers
    "blip_uniadapter": {"name": "uniadapter", "bottleneck": 4, "share": "none"},
    # and whose blocks hand a stream on, beside a pair that all attentions have and a half of which is shared
    "blip_unitrans": {"name": "unitrans", "rank": 3, "share": "down"},
}

ADDS_NOTHING = ("full", "projection", "bitfit")

# Only the order of additions differs. Measured worst case of runs at 12 steps over 24 cells of single and multiple adapters
# (against ZeRO 0 on one process): 7.2e-7 on losses of 2 to 7, and 3.7e-5 on trained tensors (Adam turns the rounding of
# near-zero gradients into visible differences).
RUN_LOSS, RUN_TENSORS = 5e-6, 2e-4
# Measured at 12 steps over 12 cells each: 1.7e-5 and 1.2e-3; 8.6e-6 and 4.1e-5. The former is one number of 2,048, a bias behind
# weights that start at zero: its first gradient is 3e-7 beside 3e-3, and Adam's first step on it goes as rounding does. Plain
# PyTorch differs from itself in float64 by 2.0e-6 and 4.5e-5 there, in two splits by 1.1e-6 and 6.0e-5.
WIDER_RUNS = {"hyperformer": (5e-5, 5e-3), "prompt": (2e-5, RUN_TENSORS)}
# Of three steps at rate 0.01; measured on one rank: 2.4e-7 and 1.3e-5 (prefix under ZeRO-3, keys with tiny gradients).
STEP_LOSS, STEP_TENSORS = 1e-5, 1e-4
# The head over answers has gradients of 5e-6 beside those of 0.3, whose rounding Adam enlarges: 2.0e-4 on every stage.
# One number of UniTrans, in a factor that gets no gradient before its b has moved: its first one is 4e-9 beside others of 1e-3.
# 1.6e-4 under ZeRO-2 on one rank, 3.2e-6 under ZeRO-3; the next number differs by 1.3e-6.
WIDER = {"vil_adapter": 1e-3, "blip_unitrans": 1e-3}


@dataclass(frozen=True)
class Cell:
    """One method on one ZeRO stage and number of processes; `micro` rows a micro-batch in a whole run, 0 in three steps."""

    method: str
    stage: int
    world: int
    micro: int = 0

    @property
    def name(self) -> str:
        """E.g. half_up-zero2-world2-micro4 of a run, lora-zero3-world2 of three steps."""
        run = f"-micro{self.micro}" if self.micro else ""
        return f"{self.method}-zero{self.stage}-world{self.world}{run}"

    @classmethod
    def parse(cls, name: str) -> Cell:
        """Inverse of `name`; ValueError for anything else."""
        method, *numbers = name.split("-")
        words = ("zero", "world", "micro")[: max(2, len(numbers))]
        cell = cls(method, *(int(t.removeprefix(w)) for t, w in zip(numbers, words, strict=True)))
        if (
            cell.name != name
            or method not in (RUNS if cell.micro else STEPS)
            or cell.stage > 3
            or cell.world not in (1, 2)
        ):
            raise ValueError(name)
        return cell

    @property
    def tolerances(self) -> tuple[float, float]:
        """Largest differences of a loss and of a trained number."""
        if self.micro:
            return WIDER_RUNS.get(self.method, (RUN_LOSS, RUN_TENSORS))
        return STEP_LOSS, WIDER.get(self.method, STEP_TENSORS)


def matrix(methods: Sequence[str], stages: Sequence[int], worlds: Sequence[int]) -> list[Cell]:
    """Three steps and a whole run of every method, on every stage and world; a run's second split on stages 0 and 2."""
    steps = [Cell(m, s, w) for m in methods if m in STEPS for w in worlds for s in stages]
    runs = [
        Cell(method, stage, world, micro)
        for method in methods if method in RUNS for world in worlds for stage in stages
        for micro in ((16, 4) if stage in (0, 2) else (16,))
    ]  # fmt: skip
    return [*steps, *runs]


@dataclass(frozen=True)
class Row:
    """What a cell measured: largest differences from plain PyTorch, the last loss, and what else is wrong."""

    cell: str
    loss: float
    tensors: float
    last_loss: float
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Within the tolerances of its kind, and nothing else is wrong. A difference that is no number has not passed."""
        loss, tensors = Cell.parse(self.cell).tolerances
        return self.loss <= loss and self.tensors <= tensors and not self.problems
