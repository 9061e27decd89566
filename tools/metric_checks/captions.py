"""Checks of caption metrics and tokenisers."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from metric_checks.case import EXACT, ROUNDED, Case
from mtvl.metrics.captions import score_captions, score_tokenised, tokenise
from mtvl.metrics.java import Meteor, find_java
from mtvl.metrics.ptb import python_ptb

OWN_TOKENISER = 2e-3
CAPTION_METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


@functools.cache
def _running_meteor() -> Meteor:
    # One for all cases: it takes seconds to start.
    meteor = Meteor()
    atexit.register(meteor.close)
    return meteor


def _meteor(case: Case) -> Meteor | bool:
    if find_java() is None:
        case.not_run.append("METEOR not run (no Java)")
        return False
    return _running_meteor()


def _compare_captions(
    case: Case,
    what: str,
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    overall: Mapping[str, float],
    items: Mapping[str, Mapping[str, Any]],
) -> dict[str, float]:
    """Score tokenised text and compare totals and items at the exact tolerance; returns the totals as fractions."""
    result = score_tokenised(candidates, references, meteor=_meteor(case) if "METEOR" in overall else False)
    totals = {name: value / 100 for name, value in result.metrics.items()}
    wanted = {name: value for name, value in overall.items() if name in totals or name != "METEOR"}
    case.numbers(f"{what} overall", {name: totals[name] for name in wanted if name in totals}, wanted)
    for uid, row in items.items():
        for name in CAPTION_METRICS:
            if name in row and name in totals:
                case.number(f"{what} {name} of {uid}", result.details["per_item_metrics"][name][uid] / 100, row[name])
    return totals


def _check_tokenised_set(
    case: Case,
    predictions: Mapping[str, str],
    references: Mapping[str, list[str]],
    items: Mapping[str, Mapping[str, Any]],
    ascii_only: bool,
) -> None:
    case.same("items", sorted(predictions), sorted(items))
    case.same("items with references", sorted(references), sorted(items))
    if case.failures:
        return
    has_text = all("tokenised_candidate" in row and "tokenised_references" in row for row in items.values())
    overall = case.expected["overall"]
    python = score_captions(predictions, references, tokenizer="python", ascii_only=ascii_only)
    own = (
        python
        if find_java() is None
        else score_captions(
            predictions, references, tokenizer="ptb", meteor="METEOR" in overall and not has_text, ascii_only=ascii_only
        )
    )
    if has_text:
        candidates = {uid: row["tokenised_candidate"] for uid, row in items.items()}
        truths = {uid: row["tokenised_references"] for uid, row in items.items()}
        totals = _compare_captions(case, "stored text", candidates, truths, overall, items)
        for name, printed in case.expected.get("overall_as_printed_by_value", {}).items():
            if name in totals:
                case.number(f"{name} as printed", 100 * totals[name], printed, ROUNDED)
        same = sum(_same_text(python.details["tokenised"][uid], items[uid]) for uid in items)
        case.notes.append(f"python tokeniser equal for {same} of {len(items)}")
    if find_java() is not None:
        if has_text:
            for uid, row in items.items():
                case.same(f"tokenised text of {uid}", _same_text(own.details["tokenised"][uid], row), True)
        for name in overall.keys() & own.metrics.keys():
            case.number(f"own {name}", own.metrics[name] / 100, overall[name])
        return
    case.not_run.append("PTB tokeniser not run (no Java)")
    for name in overall.keys() & own.metrics.keys():
        case.number(f"own {name}, python tokeniser", own.metrics[name] / 100, overall[name], OWN_TOKENISER)


def _same_text(found: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    # References are a set to every metric; the official annotation file need not list them in the stored order.
    same_candidate = found["candidate"] == row["tokenised_candidate"]
    return bool(same_candidate and sorted(found["references"]) == sorted(row["tokenised_references"]))


def check_captions_coco(case: Case) -> None:
    items = case.expected["per_image"]
    references: dict[str, list[str]] = {}
    for row in case.read("references")["annotations"]:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    predictions = {str(row["image_id"]): row["caption"] for row in case.read("results")}
    predictions = {uid: predictions[uid] for uid in items if uid in predictions}
    references = {uid: references[uid] for uid in items if uid in references}
    _check_tokenised_set(case, predictions, references, items, ascii_only=False)


def check_captions_yc2c(case: Case) -> None:
    references = {str(row["clip_id"]): [d["desc"] for d in row["descs"]] for row in case.read("references")}
    predictions = {str(row["clip_id"]): row["descs"][0]["desc"] for row in case.read("predictions")}
    predictions = {uid: predictions[uid] for uid in references if uid in predictions}
    _check_tokenised_set(case, predictions, references, case.expected["per_clip"], ascii_only=True)


def check_captions_two_references(case: Case) -> None:
    candidates = {str(i): text for i, text in enumerate(case.expected["hypotheses"])}
    columns = case.expected["references"]  # one list per reference set, as nlg-eval reads its files
    references = {str(i): [column[i] for column in columns] for i in range(len(candidates))}
    totals = _compare_captions(case, "", candidates, references, case.expected["overall"], {})
    for name, printed in case.expected.get("published", {}).items():
        if name in totals:
            half_a_unit = 0.5 * 10.0 ** -len(str(printed).partition(".")[2])
            case.number(f"published {name}", totals[name], printed, max(EXACT, half_a_unit + 1e-9))


def check_captions_edge_cases(case: Case) -> None:
    items = case.expected["items"]
    candidates = {name: row["candidate"] for name, row in items.items()}
    references = {name: row["references"] for name, row in items.items()}
    _compare_captions(case, "", candidates, references, case.expected["overall"], items)
    for name, expected in case.expected.get("cider_when_scored_alone", {}).items():
        alone = score_tokenised({name: candidates[name]}, {name: references[name]}, meteor=False)
        case.number(f"CIDEr of {name} alone", alone.metrics["CIDEr"] / 100, expected)


def check_ptb_tokeniser(case: Case) -> None:
    items = case.expected["items"]
    texts = [item["input"] for item in items]
    found, label = tokenise(texts, "ptb" if find_java() is not None else "python")
    own = [python_ptb(text) for text in texts]
    case.notes.append(f"tokeniser {label}")
    for item, text in zip(items, found, strict=True):
        case.same(f"tokens of {item['input']!r}", text, item["tokenised"])
    same = sum(text == item["tokenised"] for text, item in zip(own, items, strict=True))
    case.notes.append(f"python tokeniser equal for {same} of {len(items)}")
