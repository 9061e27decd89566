"""Training on every ZeRO stage and number of processes, against plain PyTorch: losses and trained tensors must agree.

    python tools/check_stages.py [--out FOLDER] [--methods lora,half_up,...] [--stages 0,1,2,3] [--worlds 1,2]
                                 [--cells NAME,...] [--steps 12] [--json] [key=value ...]

Two kinds of cells: three steps of every method but the linear probe on tiny random backbones, in which parts of idle tasks must stand still bit
for bit (named as lora-zero3-world2), and whole runs of a recipe with dropout 0 in fp32 on
generative tasks that take turns, two a step, in two micro-batch splits (half_up-zero2-world2-micro4). Both are held against
plain PyTorch loops (tools/stage_checks). `--out` keeps every cell as it is measured: the same command goes on where it was
interrupted. Exit code 1 when a cell fails, 2 when something is wrong with the command.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stage_checks.cells import RUNS, STEPS, Cell, Row, matrix  # noqa: E402
from stage_checks.launching import claim, launch, read_row, work  # noqa: E402

from mtvl.errors import MtvlError  # noqa: E402

METHODS = list(dict.fromkeys((*STEPS, *RUNS)))


def measure(folder: Path, cells: Sequence[Cell], steps: int, overrides: Sequence[str]) -> list[Row]:
    """Rows of all cells; those that `folder` does not hold yet are trained, one launch for a number of processes."""
    claim(folder, steps, overrides)
    missing = [cell for cell in cells if read_row(folder, cell) is None]
    plain = list(dict.fromkeys(cell.method for cell in missing if cell.micro))
    for world in sorted({cell.world for cell in missing} | ({1} if plain else set())):
        names = ",".join(cell.name for cell in missing if cell.world == world)
        command = [sys.executable, __file__, "--worker", str(folder), "--cells", names, "--plain", ",".join(plain),
                   "--steps", str(steps), *overrides]  # fmt: skip
        launch(folder, world, command)
        plain = []  # the first launch has made them: it is of one process
    rows = [read_row(folder, cell) for cell in cells]
    return [row for row in rows if row is not None]


def report(rows: Sequence[Row], as_json: bool) -> int:
    """Print; exit code."""
    if as_json:
        print(json.dumps([asdict(row) | {"passed": row.passed} for row in rows], indent=1))
    else:
        print(f"{'':4} {'cell':34} {'loss diff':>9} {'tensor diff':>11} {'last loss':>10}")
        for row in rows:
            print(
                f"{'PASS' if row.passed else 'FAIL'} {row.cell:34} {row.loss:9.1e} {row.tensors:11.1e} {row.last_loss:10.6f}"
            )
            for problem in row.problems[:5]:
                print(f"     {problem}")
    failed = [row for row in rows if not row.passed]
    print(f"{'FAIL' if failed else 'PASS'} {len(rows) - len(failed)} of {len(rows)} cells agree with plain PyTorch")
    kinds: dict[tuple[str, tuple[float, float]], list[Row]] = {}
    for row in rows:
        cell = Cell.parse(row.cell)
        kinds.setdefault(("whole runs" if cell.micro else "three steps", cell.tolerances), []).append(row)
    for (kind, tolerances), own in kinds.items():
        methods = ", ".join(dict.fromkeys(Cell.parse(row.cell).method for row in own))
        print(f"     {kind}, {len(own)} cells: largest difference of losses {max(r.loss for r in own):.1e}, of trained tensors "
              f"{max(r.tensors for r in own):.1e} (tolerances {' and '.join(f'{t:.0e}' for t in tolerances)}): {methods}")  # fmt: skip
    return int(bool(failed))


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    """The same as numbers."""
    if not all(word.isdecimal() for word in words(text)):
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, found {text!r}")
    return [int(word) for word in words(text)]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="folder that keeps what was measured, to go on with")
    parser.add_argument("--methods", type=words, default=METHODS)
    parser.add_argument("--stages", type=numbers, default=[0, 1, 2, 3])
    parser.add_argument("--worlds", type=numbers, default=[1, 2])
    parser.add_argument("--cells", type=words, default=[])
    parser.add_argument("--steps", type=int, default=12, help="of a whole run")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--plain", type=words, default=[], help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the whole runs, as data.root=DIR"
    )
    return parser


def choose(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[Cell]:
    """The cells that were asked for; ends with a message when one does not exist."""
    if unknown := [m for m in args.methods if m not in METHODS]:
        parser.error(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
    if wrong := [s for s in args.stages if s not in range(4)]:
        parser.error(f"unknown stage {wrong[0]}; expected 0, 1, 2 or 3")
    if wrong := [w for w in args.worlds if w not in (1, 2)]:
        parser.error(f"cannot split a slot of four rows over {wrong[0]} processes; expected 1 or 2")
    if args.steps < 1:
        parser.error(f"--steps wants a number above 0, found {args.steps}")
    if stray := [text for text in args.overrides if "=" not in text]:
        parser.error(f"expected key=value, found {stray[0]!r}")
    cells = []
    for name in args.cells:
        try:
            cells.append(Cell.parse(name))
        except ValueError:
            parser.error(f"no cell {name!r}; expected e.g. lora-zero3-world2 for three steps ({', '.join(STEPS)}) or "
                         f"half_up-zero2-world2-micro4 for a whole run ({', '.join(RUNS)})")  # fmt: skip
    return cells or matrix(args.methods, args.stages, args.worlds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, and report."""
    parser = make_parser()
    args = parser.parse_intermixed_args(arguments)
    cells = choose(parser, args)
    try:
        if args.worker:
            work(args.worker, cells if args.cells else [], args.plain, args.steps, args.overrides)
            return 0
        if args.out is not None:
            return report(measure(args.out, cells, args.steps, args.overrides), args.json)
        with tempfile.TemporaryDirectory() as folder:
            return report(measure(Path(folder), cells, args.steps, args.overrides), args.json)
    except MtvlError as error:
        print(f"check_stages: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
