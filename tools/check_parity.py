"""Compare this project with numbers recorded from published implementations.

    python tools/check_parity.py DIR [--case NAME] [--require-all] [--verbose]

DIR holds pairs NAME.json and NAME.safetensors. The JSON's `family` and `kind` choose the checker, file names do not.
A line a case: PASS, FAIL or SKIP (something that is not registered yet), the case, the largest difference and the
tolerance of the quantity that comes nearest to its limit. Exit code 0, 1 (a FAIL, an unknown family or kind, or with
--require-all a SKIP) or 2 (no such folder, no case in it or none of that name, a JSON that cannot be read).
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

import torch
from safetensors import SafetensorError

sys.path.insert(0, str(Path(__file__).resolve().parent))

from parity import FAMILIES, PLANNED  # noqa: E402
from parity.report import Case, NotYet, Report, read_case  # noqa: E402

from mtvl.errors import MtvlError, near_names  # noqa: E402


def check_case(case: Case) -> tuple[str, str, Report]:
    """(PASS | FAIL | SKIP, text for the line, comparisons) of one case."""
    report = Report()
    family, kind = case.facts.get("family"), case.facts.get("kind")
    if not isinstance(family, str) or not isinstance(kind, str):
        return "FAIL", "its JSON has no 'family' and 'kind'", report
    if kind in PLANNED.get(family, ()):
        return "SKIP", f"cases of family {family!r}, kind {kind!r} have no checker yet", report
    try:
        FAMILIES.load(family)(case, report)
    except NotYet as reason:
        return "SKIP", str(reason), report
    except (MtvlError, OSError, SafetensorError) as error:
        return "FAIL", f"{type(error).__name__}: {error}", report
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:  # e.g. a JSON of another layout
        traceback.print_exc()
        return "FAIL", f"{type(error).__name__}: {error}", report
    if not report.quantities:
        return "FAIL", "nothing was compared", report
    worst = report.worst()
    return "PASS" if report.passed else "FAIL", f"{worst.difference:.2g} {worst.tolerance} ({worst.name})", report


def breakdown(report: Report, *, only_failed: bool) -> list[str]:
    """A line a quantity."""
    return [
        f"     {'within' if q.passed else 'beyond'} {q.name:44} {q.difference:9.2g}  {q.tolerance}  {q.note}".rstrip()
        for q in report.quantities
        if not (only_failed and q.passed)
    ]


class InputError(MtvlError):
    """There is nothing to check, or it cannot be read: exit code 2."""


def select(folder: Path, name: str) -> list[Case]:
    """The cases of `folder`, all or those called `name`. InputError when there are none, or one cannot be read."""
    wanted = "expected a folder of pairs NAME.json and NAME.safetensors"
    if not folder.is_dir():
        raise InputError(f"{folder}: {wanted}, found {'a file' if folder.exists() else 'no such folder'}")
    files = sorted(folder.glob("*.json"))
    if not files:
        below = sorted({str(p.parent) for p in folder.glob("*/*.json")})
        hint = f"; there are some in {', '.join(below)}" if below else ""
        raise InputError(f"{folder}: {wanted}, found no *.json in it{hint}")
    cases = []
    for file in files:
        try:
            cases.append(read_case(file))
        except (OSError, ValueError) as error:  # broken JSON and broken UTF-8 are ValueErrors
            raise InputError(f"{file} cannot be read: {error}") from None
    chosen = [c for c in cases if not name or name in (c.name, c.file.stem)]
    if not chosen:
        raise InputError(f"{folder}: no case {name!r}; {near_names(name, [c.name for c in cases])}")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Check the cases and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--case", default="", metavar="NAME")
    parser.add_argument("--require-all", action="store_true", help="a SKIP is a FAIL")
    parser.add_argument("--verbose", action="store_true", help="a line a quantity")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the recordings were made with one thread; tiny sizes gain nothing from more
    counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    try:
        cases = select(options.folder, options.case)
    except InputError as error:
        print(f"check_parity: {error}", file=sys.stderr)
        return 2
    for case in cases:
        verdict, text, report = check_case(case)
        if verdict == "SKIP" and options.require_all:
            verdict, text = "FAIL", f"skipped, but all are required: {text}"
        counts[verdict] += 1
        print(verdict, case.name, text, flush=True)
        if options.verbose or verdict == "FAIL":
            print(*breakdown(report, only_failed=not options.verbose), sep="\n", end="\n" if report.quantities else "")
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count), file=sys.stderr)
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
