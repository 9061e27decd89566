"""Checks of VQA, GQA, NLVR2 and multiple-choice accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from metric_checks.case import ROUNDED, Case, InputError
from mtvl.errors import DataError
from mtvl.metrics.gqa import score_gqa
from mtvl.metrics.nlvr2 import score_nlvr2
from mtvl.metrics.qa import score_qa
from mtvl.metrics.vqa import (
    answer_texts,
    normalise,
    normalise_punctuation,
    normalise_words,
    question_accuracy,
    score_vqa,
)


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
    can_be_empty = ("binary", "open", "validity", "plausibility", "consistency", "grounding")
    return {name: metrics.get(name, 0.0) if name in can_be_empty else metrics[name] for name in expected}


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
