"""The same run on every ZeRO stage, number of processes and micro-batch split, against plain PyTorch: losses must agree.

    python tools/check_stages.py [--steps 12] [--methods single,half_up,...] [--stages 0,1,2,3] [--worlds 1,2]
                                 [--cells NAME,...] [--json]

Trains the default recipe for a few steps with dropout 0 in fp32 on generative tasks that take turns, two a step, once for
every method and combination, and prints the largest difference of losses and of trained tensors from a plain PyTorch
loop of the same recipe (tools/stage_checks/plain.py). `--cells` names single ones, e.g. half_up-zero2-world2-micro8. Exit
code 1 when a difference exceeds the tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Only the order of additions differs. Measured worst case at 12 steps over 24 cells of single and multiple adapters (against
# ZeRO 0 on one process): 7.2e-7 on losses of 2 to 7, and 3.7e-5 on trained tensors (Adam turns the rounding of near-zero
# gradients into visible differences). The other methods hold the same tolerances against plain PyTorch at 4 steps.
TOLERANCE = 5e-6
TENSOR_TOLERANCE = 2e-4
TASKS = "vqa,gqa,nlvr2,coco"
GLOBAL_BATCH = 16

METHODS: dict[str, list[str]] = {
    "single": ["petl.share=all"],
    "half_up": ["petl.share=up"],
    "half_down": ["petl.share=down"],
    "multiple": ["petl.share=none"],
    "hyperformer": ["petl.name=hyperformer"],
    "prompt": ["petl.name=prompt", "petl.share=none", "petl.length=8"],
    # A place for "uniadapter": [...], once a backbone that it adapts can be trained.
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    method: str
    stage: int
    world: int
    micro: int

    @property
    def name(self) -> str:
        """Folder name."""
        return f"{self.method}-zero{self.stage}-world{self.world}-micro{self.micro}"

    @classmethod
    def parse(cls, name: str) -> Cell:
        """Inverse of `name`; ValueError for anything else."""
        method, stage, world, micro = name.split("-")
        cell = cls(
            method,
            *(int(t.removeprefix(w)) for t, w in zip((stage, world, micro), ("zero", "world", "micro"), strict=True)),
        )
        if cell.name != name or method not in METHODS:
            raise ValueError(name)
        return cell


def matrix(methods: list[str], stages: list[int], worlds: list[int]) -> list[Cell]:
    """Every method, stage and world with one split; a second split on stages 0 and 2."""
    return [
        Cell(method, stage, world, micro)
        for method in methods for world in worlds for stage in stages
        for micro in ((16, 4) if stage in (0, 2) else (16,))
    ]  # fmt: skip


def reference_name(method: str) -> str:
    """Folder name of a method's plain run."""
    return f"{method}-plain"


def worker(folder: Path, wanted: list[Cell], plain: list[str], steps: int, overrides: list[str]) -> int:
    """Train the cells of one world size, and plain runs, in this process."""
    from stage_checks.plain import train_plainly

    from mtvl.cli import DEFAULT_RECIPE
    from mtvl.config import RunConfig, load_run_config
    from mtvl.engine import finish, start
    from mtvl.train import train

    def configuration(method: str, stage: int, micro: int) -> RunConfig:
        return load_run_config(
            DEFAULT_RECIPE, TASKS.split(","),
            [f"engine.file=ds_configs/zero{stage}.json", f"train.steps={steps}", f"train.micro_batch={micro}",
             f"train.global_batch={GLOBAL_BATCH}", "checkpoint.every_steps=1000000", "checkpoint.keep_best=false",
             "data.max_examples=400", "mixture.law=equal", "mixture.slots=2", "backbone.dropout=0.0", "optim.lr=1e-3",
             *METHODS[method], *overrides],
        )  # fmt: skip

    start()
    for method in plain:
        train_plainly(configuration(method, 0, GLOBAL_BATCH), folder / reference_name(method))
    for cell in wanted:
        train(configuration(cell.method, cell.stage, cell.micro), folder / cell.name, resume="never")
    finish(0)


def launch(folder: Path, world: int, cells: list[Cell], plain: list[str], args: argparse.Namespace) -> None:
    """Start `world` worker processes for these cells and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        **os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, __file__, "--worker", str(folder), "--cells", ",".join(c.name for c in cells), "--plain",
               ",".join(plain), "--steps", str(args.steps), *args.overrides]  # fmt: skip
    log = folder / f"world{world}.log"
    with log.open("w") as file:
        processes = [
            subprocess.Popen(
                command, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=file, stderr=subprocess.STDOUT
            )
            for r in range(world)
        ]
        codes = [p.wait() for p in processes]
    if any(codes):
        raise SystemExit(f"world {world} ended with {codes}:\n{log.read_text()[-4000:]}")


def compare(folder: Path, cells: list[Cell]) -> list[dict[str, object]]:
    """Largest differences of every cell from the plain run of its method."""
    from safetensors.torch import load_file

    rows: list[dict[str, object]] = []
    for cell in cells:
        plain, run = folder / reference_name(cell.method), folder / cell.name
        losses, expected = (
            [json.loads(x)["loss"] for x in (f / "log.jsonl").read_text().splitlines()] for f in (run, plain)
        )
        tensors, wanted = (load_file(str(f / "export" / "adapter.safetensors")) for f in (run, plain))
        trained = {name for name in tensors if not name.startswith("rows/")}
        if trained != set(wanted):
            raise SystemExit(f"{cell.name}: trained {len(trained)} tensors, the plain run {len(wanted)}")
        worst = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        drift = max(float((wanted[k] - tensors[k]).abs().max()) for k in wanted)
        rows.append({"cell": cell.name, "loss": worst, "tensors": drift, "last_loss": losses[-1]})
    return rows


def main() -> int:
    """Run and compare."""
    integers = lambda text: [int(x) for x in text.split(",")]  # noqa: E731
    words = lambda text: [w for w in text.split(",") if w]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--methods", type=words, default=list(METHODS))
    parser.add_argument("--stages", type=integers, default=[0, 1, 2, 3])
    parser.add_argument("--worlds", type=integers, default=[1, 2])
    parser.add_argument("--cells", type=words, default=[])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--plain", type=words, default=[], help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    if unknown := [m for m in args.methods if m not in METHODS]:
        parser.error(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
    try:
        cells = [Cell.parse(name) for name in args.cells]
    except ValueError as error:
        parser.error(f"no cell {error}; expected e.g. half_up-zero2-world2-micro8, methods {', '.join(METHODS)}")
    if args.worker:
        return worker(args.worker, cells, args.plain, args.steps, args.overrides)
    cells = cells or matrix(args.methods, args.stages, args.worlds)
    with tempfile.TemporaryDirectory() as temporary:
        folder, plain = Path(temporary), list(dict.fromkeys(c.method for c in cells))
        for world in sorted({1, *(c.world for c in cells)}):
            launch(folder, world, [c for c in cells if c.world == world], plain if world == 1 else [], args)
        rows = compare(folder, cells)
    return report(rows, args.json)


def report(rows: list[dict[str, object]], as_json: bool) -> int:
    """Print; exit code."""
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(
                f"{row['cell']:38} loss diff {row['loss']:.2e}  tensor diff {row['tensors']:.2e}  last loss {row['last_loss']:.6f}"
            )
    worst = max(float(str(r["loss"])) for r in rows)
    drift = max(float(str(r["tensors"])) for r in rows)
    failed = worst > TOLERANCE or drift > TENSOR_TOLERANCE
    print(f"{'FAIL' if failed else 'PASS'} {len(rows)} cells, largest loss difference {worst:.2e} (tolerance {TOLERANCE}), "
          f"largest tensor difference {drift:.2e} (tolerance {TENSOR_TOLERANCE})")  # fmt: skip
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
