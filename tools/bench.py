"""Measure what the figures promise, sides in turns on this machine: medians, rounds and ratios.

    python tools/bench.py [--only NAME[,NAME]] [--json] [--rounds N]

`ratio` is a median over that of the baseline beside it. Progress goes to stderr, the table or JSON to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

try:
    import mtvl.errors  # noqa: F401
except ImportError:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch  # noqa: E402

from mtvl.errors import MtvlError  # noqa: E402
from mtvl.registry import Registry  # noqa: E402
from mtvl.report import table  # noqa: E402

BENCHES = Registry(
    "benchmark",
    {
        "data": "benches.data:measure",
        "features": "benches.features:measure",
        "epoch": "benches.epoch:measure",
        "step": "benches.step:measure",
        "save": "benches.save:measure",
        "ranks": "benches.ranks:measure",
        "decode": "benches.decode:measure",
        "blip": "benches.blip:measure",
        "rerank": "benches.rerank:measure",
    },
)


def machine() -> str:
    """Processor, cores that this process may use, load, and GPU."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # only Linux has the file
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {cores} cores, load {os.getloadavg()[0]:.1f}{gpu}"


def measure(names: list[str], rounds: int) -> dict[str, Any]:
    """Run the benchmarks `names`; plain values. ConfigError for an unknown name, before anything is measured."""
    for name in names:
        BENCHES[name]
    before = machine()
    results = []
    with contextlib.redirect_stdout(sys.stderr):
        for name in names:
            results += [{"bench": name, **asdict(result)} for result in BENCHES.load(name)(rounds)]
    return {"machine": before, "torch_threads": torch.get_num_threads(), "results": results}


def pretty(report: dict[str, Any]) -> str:
    """The report as aligned text."""
    rows = []
    for row in report["results"]:
        ratio = f"{row['ratio']:.2f} x {row['baseline']}" if row["baseline"] else ""
        rows.append([
            f"{row['bench']}: {row['name']}", f"{row['median']:,.4g}", row["unit"], str(row["rounds"]), ratio, row["note"],
        ])  # fmt: skip
    header = ["benchmark", "median", "unit", "rounds", "ratio", "note"]
    return f"{table(rows, header)}\n{report['machine']}; {report['torch_threads']} torch threads"


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"some of {', '.join(BENCHES)}; default: all")
    parser.add_argument("--json", action="store_true", help="an object instead of a table")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of every side; default: 5")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds expects a number above 0, found {options.rounds}")
    names = [n.strip() for n in options.only.split(",")] if options.only else list(BENCHES)
    try:
        report = measure(names, options.rounds)
    except MtvlError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=1) if options.json else pretty(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
