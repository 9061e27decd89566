"""Read generated data sets with faults as a training run does: nothing may hang, and no sound sample may be lost.

    python tools/fuzz_inputs.py [--cases 500] [--seed 0] [--only N] [--seconds 60]

A case is a small set of one of the benchmarks, in its own files, with faults in some rows: wrong types, missing fields,
NaN, ids that stand twice, other encodings, files that are cut; pictures and videos that are empty, cut, mislabelled, huge,
animated, without a picture, or programs; names that lead out of the data root; stored features that are pickled or claim
another shape. Each is read twice. Where faults are refused it has to end with an error that names the file; where rows are
left out, exactly the sound ones have to arrive in a batch and the others in the log. Cases run in a process of their own,
which is killed after `--seconds` and counted as a hang. A case is repeated by seed and number. Exit code 1 on any fault.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import select
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzzing.cases import draw
from fuzzing.running import run_case

from mtvl.report import Progress


def one(seed: int, number: int, folder: Path) -> dict[str, object]:
    """Draw and read one case; what became of it, as plain values."""
    case = draw(random.Random(f"{seed}:{number}"))
    outcome = run_case(case, folder / str(number))
    return {"number": number, "drawn": case.faults, "task": case.layout.task, **vars(outcome)}


def worker(seed: int, numbers: Sequence[int], folder: Path, pipe: int) -> None:
    """Read cases one after the other and send a line for each."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # FFmpeg and decoders talk
    for number in numbers:
        os.write(pipe, json.dumps(one(seed, number, folder)).encode() + b"\n")


class Cases:
    """Runs cases in a child, and goes on with a new one where a case hangs or takes the child with it."""

    def __init__(self, seed: int, seconds: float, folder: Path) -> None:
        self.seed, self.seconds, self.folder = seed, seconds, folder

    def run(self, numbers: Sequence[int]) -> list[dict[str, object]]:
        """Results in order; {"number", "end"} for a case that did not come back."""
        found: list[dict[str, object]] = []
        progress = Progress("cases", len(numbers))
        while len(found) < len(numbers):
            rest = numbers[len(found) :]
            lines, end = self._child(rest, progress, len(found))
            found += lines
            if end and len(found) < len(numbers):
                found.append({"number": numbers[len(found)], "end": end})
        return found

    def _child(self, numbers: Sequence[int], progress: Progress, before: int) -> tuple[list[dict[str, object]], str]:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            code = 1
            try:
                worker(self.seed, numbers, self.folder, writer)
                code = 0
            finally:
                os._exit(code)  # nothing of the parent may run twice
        os.close(writer)
        data, end = b"", ""
        while data.count(b"\n") < len(numbers):
            if not select.select([reader], [], [], self.seconds)[0]:
                end = "hang"
                os.kill(pid, signal.SIGKILL)
                break
            piece = os.read(reader, 2**16)
            if not piece:
                end = "crash"
                break
            data += piece
            progress.update(before + data.count(b"\n"))
        os.close(reader)
        os.waitpid(pid, 0)
        return [json.loads(line) for line in data.split(b"\n")[: data.count(b"\n")]], end


def report(results: Sequence[dict[str, object]], seed: int, seconds: float) -> int:
    """Print the counts; returns how many cases are not as they should be."""
    counts: Counter[str] = Counter()
    wrong = 0
    for result in results:
        faults = list(result.get("faults", []))  # type: ignore[call-overload]
        lost = list(result.get("lost", []))  # type: ignore[call-overload]
        counts["hangs"] += result.get("end") == "hang"
        counts["crashes"] += result.get("end") == "crash"
        counts["lost"] += len(lost)
        counts["errors"] += len(result.get("errors", []))  # type: ignore[arg-type]
        counts["skipped"] += result.get("skipped", 0)  # type: ignore[operator]
        counts["faulty"] += any("(sound)" not in fault for fault in result.get("drawn", []))  # type: ignore[attr-defined]
        counts["other"] += bool(faults)
        if faults or lost or "end" in result:
            wrong += 1
            what = "; ".join([*faults, *([f"lost {', '.join(lost)}"] if lost else []), str(result.get("end", ""))])
            print(f"case {result['number']} (--seed {seed} --only {result['number']}): {what}\n  {result.get('drawn')}")
    print(f"{len(results)} cases (seed {seed}, {counts['faulty']} with faults) in {seconds:.0f} s: hangs {counts['hangs']}, "
          f"crashes {counts['crashes']}, sound samples lost {counts['lost']}, clear errors {counts['errors']}, rows left "
          f"out and written down {counts['skipped']}, cases that went wrong in another way {counts['other']}")  # fmt: skip
    return wrong


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, default=None, metavar="N", help="case N alone")
    parser.add_argument("--seconds", type=float, default=60.0, help="a case that takes longer hangs")
    args = parser.parse_args()
    if args.cases < 1:
        parser.error(f"--cases expects a number above 0, found {args.cases}")
    numbers = list(range(args.cases)) if args.only is None else [args.only]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mtvl_fuzz_") as folder:
        results = Cases(args.seed, args.seconds, Path(folder)).run(numbers)
    return 1 if report(results, args.seed, time.monotonic() - begin) else 0


if __name__ == "__main__":
    sys.exit(main())
