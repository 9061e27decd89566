"""Evaluated runs side by side: scores, trained parameters, and the difference of averages from the first.

    python tools/compare_runs.py RUN [RUN ...] [--within POINTS] [--json]

Reads eval.json and export/adapter.json of each run. The average is the papers': the mean of the primary metrics, CIDEr
x 100. With `--within` the exit code is 1 when a run's average lies more than POINTS below the first run's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtvl.compare.record import read_run  # noqa: E402
from mtvl.errors import MtvlError  # noqa: E402
from mtvl.report import table  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit 2 on unusable input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--within", type=float, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    try:
        rows = [read_run(run) for run in args.runs]
    except MtvlError as error:
        print(f"compare_runs: error: {error}", file=sys.stderr)
        return 2
    tasks = list(rows[0]["scores"])
    if any(list(r["scores"]) != tasks for r in rows):
        print("compare_runs: error: the runs were evaluated on different tasks", file=sys.stderr)
        return 2
    for row in rows:
        row["difference"] = row["average"] - rows[0]["average"]
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        header = ["run", "method", "share", "seed", "steps", "trained %", *tasks, "average", "difference"]
        cells = [
            [r["run"], r["method"], r["share"], str(r["seed"]), str(r["steps"]), f"{r['trained_percent']:.2f}",
             *(f"{r['scores'][t]:.2f}" for t in tasks), f"{r['average']:.2f}", f"{r['difference']:+.2f}"]
            for r in rows
        ]  # fmt: skip
        print(table(cells, header, markdown=True))
    return int(args.within is not None and min(r["difference"] for r in rows) < -args.within)


if __name__ == "__main__":
    sys.exit(main())
