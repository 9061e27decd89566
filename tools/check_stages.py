"""The same run on every ZeRO stage, number of processes and micro-batch split: losses must agree.

    python tools/check_stages.py [--steps 12] [--stages 0,1,2,3] [--worlds 1,2] [--json]

Trains the default recipe for a few steps with dropout 0 in fp32, once with shared adapters and once with `share: none`,
for every combination, and prints the largest difference of loss and of trained tensors from (ZeRO 0, 1 process, one
micro-batch). Exit code 1 when a difference exceeds the tolerance. Measured worst case: docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

# Only the order of additions differs. Measured worst case over the 24 cells at 12 steps: 7.2e-7 on losses of 2 to 7, and
# 3.7e-5 on trained tensors (Adam turns the rounding of near-zero gradients into visible differences).
TOLERANCE = 5e-6
TENSOR_TOLERANCE = 2e-4
TASKS = "vqa,gqa,nlvr2,coco"


def cells(stages: list[int], worlds: list[int]) -> list[tuple[str, int, int, int]]:
    """(share, stage, world, micro_batch): every stage and world with one split, a second split on stages 0 and 2."""
    out = []
    for share in ("all", "none"):
        for world in worlds:
            for stage in stages:
                out.append((share, stage, world, 16))
                if stage in (0, 2):
                    out.append((share, stage, world, 8))
    return out


def name(cell: tuple[str, int, int, int]) -> str:
    """Folder name of a cell."""
    return "share_{}-zero{}-world{}-micro{}".format(*cell)


def worker(folder: Path, wanted: list[tuple[str, int, int, int]], steps: int, overrides: list[str]) -> int:
    """Train all cells of one world size in this process."""
    from mtvl.cli import DEFAULT_RECIPE
    from mtvl.config import load_run_config
    from mtvl.engine import finish, start
    from mtvl.train import train

    start()
    for cell in wanted:
        share, stage, _, micro = cell
        config = load_run_config(
            DEFAULT_RECIPE, TASKS.split(","),
            [f"petl.share={share}", f"engine.file=ds_configs/zero{stage}.json", f"train.steps={steps}",
             f"train.micro_batch={micro}", "train.global_batch=16", "checkpoint.every_steps=1000000",
             "checkpoint.keep_best=false", "data.max_examples=400", "mixture.law=equal", "mixture.slots=2",
             "backbone.dropout=0.0", "optim.lr=1e-3", *overrides],
        )  # fmt: skip
        train(config, folder / name(cell), resume="never")
    finish(0)


def launch(folder: Path, world: int, args: argparse.Namespace) -> None:
    """Start `world` worker processes and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        **os.environ,
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--worker", str(folder), "--worlds", str(world), "--stages",
               ",".join(map(str, args.stages)), "--steps", str(args.steps), *args.overrides]  # fmt: skip
    log = (folder / f"world{world}.log").open("w")
    processes = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=log, stderr=subprocess.STDOUT
        )
        for r in range(world)
    ]
    codes = [p.wait() for p in processes]
    if any(codes):
        raise SystemExit(f"world {world} ended with {codes}:\n" + (folder / f"world{world}.log").read_text()[-4000:])


def compare(folder: Path, wanted: list[tuple[str, int, int, int]]) -> list[dict[str, object]]:
    """Largest differences of every cell from the first of its `share`."""
    import torch
    from safetensors.torch import load_file

    reference: dict[str, tuple[list[float], dict[str, torch.Tensor]]] = {}
    rows: list[dict[str, object]] = []
    for cell in wanted:
        run = folder / name(cell)
        losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
        tensors = load_file(str(run / "export" / "adapter.safetensors"))
        first = reference.setdefault(cell[0], (losses, tensors))
        worst = max(abs(a - b) for a, b in zip(first[0], losses, strict=True))
        drift = max(float((first[1][k] - tensors[k]).abs().max()) for k in first[1])
        rows.append({"cell": name(cell), "loss": worst, "tensors": drift, "last_loss": losses[-1]})
    return rows


def main() -> int:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--stages", type=lambda s: [int(x) for x in s.split(",")], default=[0, 1, 2, 3])
    parser.add_argument("--worlds", type=lambda s: [int(x) for x in s.split(",")], default=[1, 2])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    wanted = cells(args.stages, args.worlds)
    if args.worker:
        return worker(args.worker, wanted, args.steps, args.overrides)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for world in args.worlds:
            launch(folder, world, args)
        rows = compare(folder, wanted)
    if args.json:
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
