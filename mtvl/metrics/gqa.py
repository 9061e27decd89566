"""GQA: accuracy, binary and open, consistency, validity, plausibility, distribution and grounding."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mtvl.errors import DataError
from mtvl.metrics.result import Result, check_ids, mean

Question = Mapping[str, Any]
Region = tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of the picture

# Programs steps that only ask: they are not counted as reasoning steps.
_ASKING = ("exist", "query: name", "choose name")
# Answers to "what do they have in common?" are attribute kinds, whatever the choices file says.
_COMMON_ANSWERS = ("color", "material", "shape")


def num_steps(question: Question) -> int:
    """Reasoning steps of a question's program (the asking operation is none)."""
    steps = (f"{step['operation']}: {step['argument']}" for step in question["semantic"])
    return sum(not any(asking in step for asking in _ASKING) for step in steps)


def entailed_ids(uid: str, question: Question) -> list[str]:
    """Ids of the questions whose answers follow from this one's, itself left out."""
    return [other for other in question.get("entailed") or [] if other != uid]


def _is_choice(answer: str, choices: Sequence[str], question: Question) -> bool:
    return answer in (_COMMON_ANSWERS if "Common" in question["types"]["detailed"] else choices)


def _overlap(low: float, high: float, other_low: float, other_high: float) -> float:
    return max(0.0, min(high, other_high) - max(low, other_low))


def _regions(question: Question, scene: Mapping[str, Any]) -> list[Region]:
    pointers = [*question["annotations"]["question"].values(), *question["annotations"]["fullAnswer"].values()]
    width, height = scene["width"], scene["height"]
    regions = []
    for pointer in pointers:
        box = scene["objects"][pointer]
        x1, y1 = (box["x"] + box["w"]) / width, (box["y"] + box["h"]) / height
        regions.append((box["x"] / width, box["y"] / height, x1, y1))
    # The official script adds the whole picture for questions about the scene, but looks for the word among the
    # *keys* of a program step, where it never stands. Its figures are therefore without that region.
    return regions


def grounding_score(question: Question, scene: Mapping[str, Any], attention: Sequence[Sequence[float]]) -> float:
    """Attention mass on the gold regions: sum over regions and cells of attention x covered share of the cell.

    `attention` is a square map; its *first* index runs along x, as in the official script. Regions that overlap
    count twice, so the score may exceed 1.
    """
    size = len(attention)
    if any(len(row) != size for row in attention):
        raise DataError(f"GQA grounding: expected a square attention map, found rows other than {size} long")
    edge = 1.0 / size
    total = 0.0
    for x0, y0, x1, y1 in _regions(question, scene):
        for i, row in enumerate(attention):
            across = _overlap(edge * i, edge * (i + 1), x0, x1)
            for j, weight in enumerate(row):
                total += weight * across * _overlap(edge * j, edge * (j + 1), y0, y1) / (edge * edge)
    return total


def distribution_distance(gold: Mapping[str, Mapping[str, int]], predicted: Mapping[str, Mapping[str, int]]) -> float:
    """Chi-square of predicted against gold answers per global group, weighted by group size, over 100.

    Only gold answers enter the sum, and the scale (chi-square / 100) is the official one: lower is better.
    """
    weighted, total = 0.0, 0
    for group, answers in gold.items():
        score = sum((predicted.get(group, {}).get(a, 0) - count) ** 2 / count for a, count in answers.items())
        weighted += score * sum(answers.values())
        total += sum(answers.values())
    return weighted / total / 100 if total else 0.0


def _consistency(uid: str, questions: Mapping[str, Question], predictions: Mapping[str, str]) -> float | None:
    others = entailed_ids(uid, questions[uid])
    if not others or predictions[uid] != questions[uid]["answer"]:
        return None
    return mean([float(predictions[other] == questions[other]["answer"]) for other in others])


def _check_consistency(
    questions: Mapping[str, Question], balanced: Mapping[str, Question], wanted: bool | None
) -> bool:
    entailed = {other for uid, question in balanced.items() for other in entailed_ids(uid, question)}
    absent = entailed - questions.keys()
    if wanted and absent:
        raise DataError(
            f"GQA consistency: expected every entailed question, found {len(absent)} of {len(entailed)} missing "
            f"(e.g. {min(absent)}); score the *all* questions file or leave consistency out"
        )
    return bool(entailed) and not absent if wanted is None else wanted


def _details(items: Mapping[str, Mapping[str, Any]], balanced: Mapping[str, Question]) -> dict[str, Any]:
    groups: dict[str, dict[str, list[float]]] = {
        name: defaultdict(list) for name in ("structural_type", "semantic_type", "steps", "length")
    }
    for uid, question in balanced.items():
        correct = items[uid]["correct"]
        groups["structural_type"][question["types"]["structural"]].append(correct)
        groups["semantic_type"][question["types"]["semantic"]].append(correct)
        groups["steps"][str(items[uid]["steps"])].append(correct)
        groups["length"][str(items[uid]["words"])].append(correct)
    return {
        f"per_{name}": {key: {"accuracy": 100 * mean(v), "count": len(v)} for key, v in sorted(found.items())}
        for name, found in groups.items()
    }


def _distributions(
    predictions: Mapping[str, str], balanced: Mapping[str, Question]
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    predicted: dict[str, Counter[str]] = defaultdict(Counter)
    for uid, question in balanced.items():
        group = question["groups"]["global"]
        if group is not None:
            gold[group][question["answer"]] += 1
            predicted[group][predictions[uid]] += 1
    return {k: dict(v) for k, v in gold.items()}, {k: dict(v) for k, v in predicted.items()}


def score_gqa(
    predictions: Mapping[str, str],
    references: Mapping[str, Question],
    *,
    choices: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    consistency: bool | None = None,
    attentions: Mapping[str, Sequence[Sequence[float]]] | None = None,
    scene_graphs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Result:
    """The official GQA figures in percent (distribution: lower is better) from exact string equality.

    `references` are the official question entries; only those with `isBalanced` (true where absent) count, the others
    serve consistency. Validity and plausibility need `choices`, grounding `attentions` and `scene_graphs`, and
    consistency all entailed questions (None: computed when they are all there); what cannot be computed is left out
    of the metrics (the official script prints 0). Predictions must cover all references, with `consistency=False` the
    balanced ones. `details`: `per_structural_type`, `per_semantic_type`, `per_steps`,
    `per_length` {name: {accuracy, count}}, `per_question`, `gold_distribution`, `predicted_distribution`.

    Raises DataError when a prediction is missing (others are ignored), or when something asked for is incomplete.
    *Source:* official GQA eval.py (copy: ronghanghu/gqa_eval_script).
    """
    balanced = {uid: question for uid, question in references.items() if question.get("isBalanced", True)}
    if not balanced:
        raise DataError(f"GQA: expected balanced questions, found none among {len(references)}; wrong file?")
    check_ids(predictions.keys(), (balanced if consistency is False else references).keys(), "GQA", allow_extra=True)
    for name, table in (("choices", choices), ("attentions", attentions)):
        if table is not None:
            check_ids(table.keys(), balanced.keys(), f"GQA {name}", allow_extra=True)
    with_consistency = _check_consistency(references, balanced, consistency)
    items: dict[str, dict[str, Any]] = {}
    for uid, question in balanced.items():
        answer = predictions[uid]
        item: dict[str, Any] = {"correct": float(answer == question["answer"])}
        if choices is not None:
            item["valid"] = float(_is_choice(answer, choices[uid]["valid"], question))
            item["plausible"] = float(_is_choice(answer, choices[uid]["plausible"], question))
        if with_consistency:
            item["consistency"] = _consistency(uid, references, predictions)
        if attentions is not None and scene_graphs is not None:
            item["grounding"] = grounding_score(question, scene_graphs[question["imageId"]], attentions[uid])
        items[uid] = item | {"words": len(question["question"].split()), "steps": num_steps(question)}
    gold, predicted = _distributions(predictions, balanced)
    per_item = {uid: 100 * item["correct"] for uid, item in items.items()}
    metrics = _overall(items, balanced) | {"distribution": distribution_distance(gold, predicted)}
    details = _details(items, balanced) | {
        "per_question": items,
        "gold_distribution": gold,
        "predicted_distribution": predicted,
    }
    return Result("accuracy", metrics, per_item, details)


def _overall(items: Mapping[str, Mapping[str, Any]], balanced: Mapping[str, Question]) -> dict[str, float]:
    by_form: dict[bool, list[float]] = {True: [], False: []}
    for uid, question in balanced.items():
        by_form[question["types"]["structural"] == "query"].append(items[uid]["correct"])
    metrics = {"accuracy": 100 * mean([item["correct"] for item in items.values()])}
    forms = {"binary": by_form[False], "open": by_form[True]}
    metrics |= {name: 100 * mean(values) for name, values in forms.items() if values}
    names = {"validity": "valid", "plausibility": "plausible", "consistency": "consistency", "grounding": "grounding"}
    for name, key in names.items():
        if key in next(iter(items.values())):
            metrics[name] = 100 * mean([item[key] for item in items.values() if item[key] is not None])
    return metrics
