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
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import mtvl.errors  # noqa: F401
except ImportError:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from mtvl.errors import DataError, MtvlError, near_names
from mtvl.metrics.captions import score_captions, score_tokenised, tokenise
from mtvl.metrics.gqa import score_gqa
from mtvl.metrics.java import find_java
from mtvl.metrics.nlvr2 import score_nlvr2
from mtvl.metrics.ptb import python_ptb
from mtvl.metrics.qa import score_qa
from mtvl.metrics.retrieval import RECALLS, score_ranked_lists, score_retrieval
from mtvl.metrics.vqa import answer_texts, normalise, normalise_punctuation, normalise_words, question_accuracy
from mtvl.metrics.vqa import score_vqa

EXACT = 1e-6
# A figure printed with two decimals may lie half a unit off; the rest is room for a tie.
ROUNDED = 0.005 + 1e-9
OWN_TOKENISER = 2e-3
CAPTION_METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
SNIFFED_BYTES = 400


class InputError(Exception):
    """A file that cannot be read as what it claims to be: exit code 2."""


@dataclass
class Case:
    """One expected file with the comparisons made so far."""

    name: str
    path: Path
    expected: dict[str, Any]
    largest: float = 0.0  # in units of the tolerance that went with it
    difference: float = 0.0
    tolerance: float = EXACT
    failures: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    comparisons: int = 0

    def number(self, what: str, found: float | None, expected: float | None, tolerance: float = EXACT) -> None:
        """Compare two numbers, or two nulls."""
        self.comparisons += 1
        if found is None or expected is None:
            if found is not expected:
                self.failures.append(f"{what}: expected {expected}, found {found}")
            return
        difference = abs(found - expected)
        if not difference <= tolerance:  # also catches NaN
            self.failures.append(f"{what}: expected {expected}, found {found}")
        if not difference / tolerance <= self.largest:
            self.largest, self.difference, self.tolerance = difference / tolerance, difference, tolerance

    def same(self, what: str, found: object, expected: object) -> None:
        """Compare two values that must be equal."""
        self.comparisons += 1
        if found != expected:
            self.failures.append(f"{what}: expected {_short(expected)}, found {_short(found)}")

    def numbers(
        self,
        what: str,
        found: Mapping[str, float | None],
        expected: Mapping[str, float | None],
        tolerance: float = EXACT,
    ) -> None:
        """Compare two tables of numbers over the same names."""
        self.same(f"names in {what}", sorted(found), sorted(expected))
        for key in expected.keys() & found.keys():
            self.number(f"{what}[{key}]", found[key], expected[key], tolerance)

    def read(self, role: str) -> Any:
        """The input file of `role`: JSON, or JSON lines as a list."""
        inputs = self.expected.get("inputs") or {}
        if role not in inputs:
            raise InputError(f"{self.path}: expected an input {role!r}, found {sorted(inputs)}")
        # Some entries carry a remark after the file name.
        return read_json(self.file(str(inputs[role]).split(" (")[0].strip()))

    def file(self, name: str) -> Path:
        """Path of a file beside the case; InputError when it is not there."""
        path = self.path.parent / name
        if not path.is_file():
            raise InputError(f"{self.path}: expected the input file {name} beside it, found none")
        return path


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def read_json(path: Path) -> Any:
    """Content of a JSON or JSON-lines file; InputError with file and line when it is neither."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a readable UTF-8 file, found: {error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as whole:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        rows = []
        for number, line in lines:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                raise InputError(f"{path}: expected JSON or JSON lines, found {whole} (line {number})") from whole
        return rows


# ---- VQA


def check_vqa(case: Case) -> None:
    annotations = {str(row["question_id"]): row for row in case.read("annotations")["annotations"]}
    predictions = {str(row["question_id"]): row["answer"] for row in case.read("results")}
    if "questions" in case.expected.get("inputs", {}):
        questions = {str(row["question_id"]) for row in case.read("questions")["questions"]}
        case.same("question ids", questions, set(annotations))
    per_variant: dict[str, Mapping[str, float]] = {}
    for variant, expected in case.expected["variants"].items():
        result = score_vqa(predictions, annotations, variant)
        per_variant[variant] = result.per_item
        case.number(f"{variant} overall", result.metrics["accuracy"], expected["overall"], ROUNDED)
        types, kinds = result.details["per_question_type"], result.details["per_answer_type"]
        case.numbers(f"{variant} perQuestionType", types, expected["perQuestionType"], ROUNDED)
        case.numbers(f"{variant} perAnswerType", kinds, expected["perAnswerType"], ROUNDED)
        case.numbers(f"{variant} perQuestion", result.per_item, expected["perQuestion"], ROUNDED)
    _check_vqa_differences(case, per_variant)
    for uid, expected in case.expected.get("official_accuracy_of_each_ground_truth_string", {}).items():
        texts = answer_texts(annotations[uid])
        found = {text: 100 * question_accuracy(text, texts) for text in expected}
        case.numbers(f"accuracy of the answers of {uid}", found, expected, ROUNDED)
    for matches, expected in case.expected.get("official_accuracy_by_number_of_matches_out_of_10", {}).items():
        texts = ["x"] * int(matches) + [f"y{i}" for i in range(10 - int(matches))]
        found_accuracy = 100 * question_accuracy("x", texts)
        case.number(f"{matches} matches", found_accuracy, expected["with_answer_id"], ROUNDED)


def _check_vqa_differences(case: Case, per_variant: Mapping[str, Mapping[str, float]]) -> None:
    block = case.expected.get("questions_where_variants_differ")
    if not block:
        return
    order = block["order"]
    differ = {
        uid: [per_variant[variant][uid] for variant in order]
        for uid in per_variant[order[0]]
        if len({round(per_variant[variant][uid], 2) for variant in order}) > 1
    }
    case.same("questions where variants differ", sorted(differ), sorted(block["scores"]))
    for uid in differ.keys() & block["scores"].keys():
        for variant, found, expected in zip(order, differ[uid], block["scores"][uid], strict=True):
            case.number(f"{variant} of {uid}", found, expected, ROUNDED)


def check_vqa_normalisation(case: Case) -> None:
    steps: dict[str, Callable[[str], str]] = {
        "after_punctuation": normalise_punctuation,
        "after_digits_articles": normalise_words,
        "normalised": normalise,
    }
    for item in case.expected["items"]:
        for name in steps.keys() & item.keys():
            case.same(f"{name} of {item['input']!r}", steps[name](item["input"]), item[name])


# ---- GQA


def check_gqa(case: Case) -> None:
    inputs = case.expected.get("inputs", {})
    questions = case.read("questions")
    predictions = {str(row["questionId"]): row["prediction"] for row in case.read("predictions")}
    choices = case.read("choices") if "choices" in inputs else None
    grounded = "attentions" in inputs and "scene_graphs" in inputs
    expected = case.expected["overall"]
    result = score_gqa(
        predictions,
        questions,
        choices=choices,
        consistency="consistency" in expected,
        attentions={str(r["questionId"]): r["attention"] for r in case.read("attentions")} if grounded else None,
        scene_graphs=case.read("scene_graphs") if grounded else None,
    )
    case.numbers("overall", _as_printed(result.metrics, expected), expected)
    names = {"Structural": "structural_type", "Semantic": "semantic_type", "Steps": "steps", "Length": "length"}
    for title, table in case.expected.get("detailed", {}).items():
        found = result.details[next(f"per_{name}" for key, name in names.items() if key in title)]
        for column in ("accuracy", "count"):
            ours, theirs = ({key: row[column] for key, row in rows.items()} for rows in (found, table))
            case.numbers(f"{title} {column}", ours, theirs)
    items = case.expected.get("per_balanced_question", {})
    if items:
        case.same("balanced questions", sorted(result.details["per_question"]), sorted(items))
    for uid, row in items.items():
        found = result.details["per_question"].get(uid, {})
        case.numbers(f"question {uid}", {key: found[key] for key in row if key in found}, row)
    for name in ("gold_distribution", "predicted_distribution"):
        if name in case.expected:
            case.same(name, result.details[name], case.expected[name])
    _check_gqa_without_choices(case, questions, predictions)


def _check_gqa_without_choices(case: Case, questions: Mapping[str, Any], predictions: Mapping[str, str]) -> None:
    expected = case.expected.get("balanced_questions_without_choices")
    if not expected:
        return
    balanced = {uid: question for uid, question in questions.items() if question["isBalanced"]}
    result = score_gqa(predictions, balanced, consistency=False)
    case.numbers("balanced questions without choices", _as_printed(result.metrics, expected), expected)


def _as_printed(metrics: Mapping[str, float], expected: Mapping[str, float]) -> dict[str, float]:
    # The official script prints 0 for what it cannot compute; ours leaves it out.
    printed = {name: 0.0 for name in ("validity", "plausibility", "consistency", "grounding") if name in expected}
    return printed | dict(metrics)


# ---- NLVR2


def check_nlvr2(case: Case) -> None:
    examples = {row["identifier"]: row for row in case.read("examples")}
    case.same("examples", len(examples), case.expected["examples"])
    for name, expected in case.expected["predictors"].items():
        path = case.file(expected["file"])
        predictions = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                identifier, comma, label = line.partition(",")
                if not comma:
                    raise InputError(f"{path}, row {number}: expected `identifier,label`, found {line!r}")
                predictions[identifier] = label
        result = score_nlvr2(predictions, examples)
        for metric in ("accuracy", "consistency"):
            case.number(f"{name} {metric}", result.metrics[metric] / 100, expected[metric])
        case.same(f"{name} correct", result.details["correct"], expected["correct_count"])
        case.same(f"{name} groups", result.details["groups"], case.expected["groups"])
        case.same(f"{name} consistent groups", result.details["consistent_groups"], expected["consistent_groups"])
        if expected.get("per_example"):
            found = {uid: value / 100 for uid, value in result.per_item.items()}
            case.numbers(f"{name} per example", found, expected["per_example"])
        if expected.get("per_group"):
            case.numbers(f"{name} per group", result.details["per_group"], expected["per_group"])


# ---- captions


def _meteor(case: Case) -> bool:
    if find_java() is None:
        case.not_run.append("METEOR not run (no Java)")
        return False
    return True


def _compare_captions(
    case: Case,
    what: str,
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    overall: Mapping[str, float],
    items: Mapping[str, Mapping[str, Any]],
) -> dict[str, float]:
    """Score tokenised text and compare totals and items at the exact tolerance; returns the totals as fractions."""
    result = score_tokenised(candidates, references, meteor="METEOR" in overall and _meteor(case))
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
    own = python if find_java() is None else score_captions(
        predictions, references, tokenizer="ptb", meteor="METEOR" in overall and not has_text, ascii_only=ascii_only
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
            case.number(f"published {name}", totals[name], printed)


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


# ---- question answering and retrieval


def _check_qa(case: Case, predictions: Mapping[str, int], truths: Mapping[str, int], **options: Any) -> None:
    result = score_qa(predictions, truths, **options)
    case.number("accuracy", result.metrics["accuracy"], case.expected["accuracy"], ROUNDED)
    for name in ("correct", "total"):
        case.same(name, result.details[name], case.expected[name])
    if "per_show" in case.expected:
        case.same("per show", result.details["per_group"], case.expected["per_show"])
    found = {uid: value / 100 for uid, value in result.per_item.items()}
    case.numbers("per question", found, case.expected["per_question"])


def check_tvqa(case: Case) -> None:
    shows = case.read("solution")["solution"]
    truths = {str(uid): answer for answers in shows.values() for uid, answer in answers.items()}
    groups = {str(uid): show for show, answers in shows.items() for uid in answers}
    predictions = {str(uid): answer for uid, answer in case.read("predictions").items()}
    if "extra_prediction_ids" in case.expected:
        extra = sorted(map(str, case.expected["extra_prediction_ids"]))
        case.same("extra predictions", sorted(predictions.keys() - truths.keys()), extra)
    _check_qa(case, predictions, truths, groups=groups, allow_extra=True)


def check_how2qa(case: Case) -> None:
    truths = {str(row["qid"]): row["answer_idx"] for row in case.read("annotations")}
    predictions = {str(uid): answer for uid, answer in case.read("predictions").items()}
    _check_qa(case, predictions, truths)
    if "prediction_for_unknown_id" in case.expected:
        refused = False
        try:
            score_qa({**predictions, "no such id": 0}, truths)
        except DataError:
            refused = True
        case.same("a prediction for an unknown id is refused", refused, True)


def check_yc2r(case: Case) -> None:
    index = {video: number for split in case.read("video_index").values() for video, (_, number) in split.items()}
    truths = {str(row["desc_id"]): index[row["vid_name"]] for row in case.read("annotations")}
    predictions = {str(row["desc_id"]): row["predictions"] for row in case.read("predictions")["VR"]}
    wanted = {name.upper(): value for name, value in case.expected["metrics"].items()}
    recalls = sorted(int(name[1:]) for name in wanted)
    result = score_ranked_lists(predictions, truths, recalls)
    case.numbers("metrics", result.metrics, wanted, ROUNDED)
    name = next((key for key in case.expected if key.startswith("rank_of_ground_truth")), None)
    if name is not None:
        depth = int(re.sub(r"\D", "", name) or 0)
        ranks = {uid: r if r is None or not depth or r <= depth else None for uid, r in result.details["rank"].items()}
        case.numbers("rank", ranks, case.expected[name])


def check_retrieval(case: Case) -> None:
    for part in case.expected["cases"]:
        similarity = np.asarray(part["similarity"], dtype=np.float64)
        for rule, expected in part["expected"].items():
            ways = ("text_to_video", "video_to_text")
            recalls = sorted({int(k[1:]) for way in ways for k in expected.get(way, {}) if re.fullmatch(r"R\d+", k)})
            result = score_retrieval(similarity, part["text_to_video_index"], rule, recalls or RECALLS)
            for way in expected.keys() & set(ways):
                figures = {name: value for name, value in expected[way].items() if name != "ranks"}
                found = {name: result.metrics[f"{way}/{name}"] for name in figures}
                case.numbers(f"{part['name']} {rule} {way}", found, figures)
                if "ranks" in expected[way]:
                    ranks = result.details["ranks"][way]
                    case.same(f"{part['name']} {rule} {way} ranks", ranks, [float(r) for r in expected[way]["ranks"]])
        _check_public_figures(case, part, similarity)


def _check_public_figures(case: Case, part: Mapping[str, Any], similarity: np.ndarray) -> None:
    """Without ties the public evaluators agree with every rule; compare their named figures there."""
    if part.get("has_ties", True):
        return
    result = score_retrieval(similarity, part["text_to_video_index"])
    names = {"R1": "R1", "R5": "R5", "R10": "R10", "MedR": "MedR", "MedianR": "MedR", "MeanR": "MnR"}
    for evaluator, figures in part.get("official", {}).items():
        for way in ("text_to_video", "video_to_text"):
            # CLIP4Clip's multi-sentence evaluator ranks groups of captions there, another question.
            if way not in figures or (evaluator == "clip4clip_multi_sentence" and way == "video_to_text"):
                continue
            for name in names.keys() & figures[way].keys():
                case.number(f"{part['name']} {evaluator} {way} {name}", result.metrics[f"{way}/{names[name]}"], figures[way][name])


CHECKS: dict[str, Callable[[Case], None]] = {
    "vqa": check_vqa,
    "vqa_normalisation": check_vqa_normalisation,
    "gqa": check_gqa,
    "nlvr2": check_nlvr2,
    "captions_coco": check_captions_coco,
    "captions_yc2c": check_captions_yc2c,
    "captions_two_references": check_captions_two_references,
    "captions_edge_cases": check_captions_edge_cases,
    "ptb_tokeniser": check_ptb_tokeniser,
    "tvqa": check_tvqa,
    "how2qa": check_how2qa,
    "yc2r": check_yc2r,
    "retrieval": check_retrieval,
}


def _is_case(path: Path) -> bool:
    if path.name.endswith("expected.json"):
        return True
    with path.open("rb") as file:
        return re.match(rb'\s*\{\s*"(family|kind)"\s*:', file.read(SNIFFED_BYTES)) is not None


def find_cases(root: Path) -> Iterator[Case]:
    """All cases under `root` in order of their paths; InputError for broken files."""
    for path in sorted(root.rglob("*.json")):
        if not _is_case(path):
            continue
        expected = read_json(path)
        if not isinstance(expected, dict):
            raise InputError(f"{path}: expected a JSON object with `family` and `kind`, found {type(expected).__name__}")
        name = str(path.relative_to(root).with_suffix("")).removesuffix("expected").rstrip("_/.") or root.resolve().name
        yield Case(name, path, expected)


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
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        where = f"{type(error).__name__}: {error}"
        raise InputError(f"{case.path}: expected the fields of kind {kind!r}, found something else ({where})") from error
    if not case.comparisons and not case.failures:
        if not case.not_run:
            case.failures.append("nothing was compared: the file records no result")
        else:
            return "FAIL" if require_all else "SKIP"
    return "FAIL" if case.failures or (require_all and case.not_run) else "PASS"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check metrics against recorded outputs of public evaluators.")
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
        verdicts = []
        for case in cases:
            verdicts.append(run_case(case, options.require_all))
            remarks = [*case.failures[:3], *case.not_run, *case.notes]
            if len(case.failures) > 3:
                remarks.insert(3, f"{len(case.failures) - 3} more")
            numbers = f"{case.difference:.3g} {case.tolerance:.3g}"
            print(verdicts[-1], case.name, numbers, "; ".join(dict.fromkeys(remarks)), flush=True)
    except InputError as error:
        print(f"check_metrics: {error}", file=sys.stderr)
        return 2
    return int("FAIL" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
