#!/usr/bin/env python3
"""Check mtvl's metrics against recorded outputs of public evaluators.

    python tools/check_metrics.py DIR [--case NAME] [--require-all]

Every `*expected.json` under DIR is a case, and so is every other JSON file that begins with a `family` field. A case
is dispatched on `family` and `kind`, never on the name of a file or folder; its inputs are the files that its `inputs`
field names (beside it), or are inside the JSON. A line a case: PASS, FAIL or SKIP, name, largest difference,
tolerance, remarks. SKIP means that this machine cannot run the case. Exit code 0, 1 (a FAIL, a kind nobody knows, or
with --require-all anything that could not be run) or 2 (no such folder, broken JSON, missing input file).

Figures for whole public files (`full_public_file`) and for annotations without `answer_id` (an artefact) are not
checked: their inputs are not beside the case.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    import mtvl.errors  # noqa: F401
except ImportError:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from metric_checks import answers, captions, retrieval  # noqa: E402
from metric_checks.case import Case, InputError, find_cases  # noqa: E402

from mtvl.errors import MtvlError, near_names  # noqa: E402

SHOWN_FAILURES = 3
CHECKS: dict[str, Callable[[Case], None]] = {
    "vqa": answers.check_vqa,
    "vqa_normalisation": answers.check_vqa_normalisation,
    "gqa": answers.check_gqa,
    "nlvr2": answers.check_nlvr2,
    "captions_coco": captions.check_captions_coco,
    "captions_yc2c": captions.check_captions_yc2c,
    "captions_two_references": captions.check_captions_two_references,
    "captions_edge_cases": captions.check_captions_edge_cases,
    "ptb_tokeniser": captions.check_ptb_tokeniser,
    "tvqa": answers.check_tvqa,
    "how2qa": answers.check_how2qa,
    "yc2r": retrieval.check_yc2r,
    "retrieval": retrieval.check_retrieval,
}


def run_case(case: Case, require_all: bool) -> str:
    """Run one case and return its verdict."""
    family, kind = case.expected.get("family"), case.expected.get("kind")
    check = CHECKS.get(str(kind)) if family == "metrics" else None
    if check is None:
        case.failures.append(f"nobody knows family {family!r}, kind {kind!r}; {near_names(str(kind), CHECKS)}")
        return "FAIL"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a tool that warns and falls back would compare something else
            check(case)
    except (MtvlError, Warning) as error:
        case.failures.append(f"{type(error).__name__}: {error}")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:  # e.g. fields of another layout
        case.failures.append(f"not laid out as kind {kind!r}: {type(error).__name__}: {error}")
    if not case.comparisons and not case.failures:
        if not case.not_run:
            case.failures.append("nothing was compared: the file records no result")
        else:
            return "FAIL" if require_all else "SKIP"
    return "FAIL" if case.failures or (require_all and case.not_run) else "PASS"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder with *expected.json files, at any depth")
    parser.add_argument("--case", metavar="NAME", help="only this case (or the cases of this folder)")
    parser.add_argument("--require-all", action="store_true", help="whatever cannot be run here is a FAIL")
    options = parser.parse_args(arguments)
    try:
        if not options.dir.is_dir():
            raise InputError(f"{options.dir}: expected a folder, found none")
        cases = list(find_cases(options.dir))
        if not cases:
            raise InputError(f"{options.dir}: expected *expected.json files in it or below, found none")
        if options.case is not None:
            names = [case.name for case in cases]
            cases = [c for c in cases if options.case == c.name or c.name.startswith(options.case.rstrip("/") + "/")]
            if not cases:
                raise InputError(f"no case {options.case!r} under {options.dir}; {near_names(options.case, names)}")
        verdicts, unreadable = [], 0
        for case in cases:
            try:
                verdicts.append(run_case(case, options.require_all))
            except InputError as error:
                unreadable += 1
                print(f"check_metrics: {error}", file=sys.stderr)
                continue
            remarks = [*case.failures[:SHOWN_FAILURES], *case.not_run, *case.notes]
            if len(case.failures) > SHOWN_FAILURES:
                remarks.insert(SHOWN_FAILURES, f"{len(case.failures) - SHOWN_FAILURES} more")
            numbers = f"{case.difference:.3g} {case.tolerance:.3g}"
            print(verdicts[-1], case.name, numbers, "; ".join(dict.fromkeys(remarks)), flush=True)
    except InputError as error:
        print(f"check_metrics: {error}", file=sys.stderr)
        return 2
    return 2 if unreadable else int("FAIL" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
