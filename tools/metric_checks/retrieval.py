"""Checks of retrieval."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from metric_checks.case import ROUNDED, Case
from mtvl.metrics.retrieval import RECALLS, score_ranked_lists, score_retrieval

# Some public evaluators count in float32.
SINGLE_PRECISION = 1e-4


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
    metrics = score_retrieval(similarity, part["text_to_video_index"]).metrics
    names = {"R1": "R1", "R5": "R5", "R10": "R10", "MedR": "MedR", "MedianR": "MedR", "MeanR": "MnR"}
    ways = ("text_to_video", "video_to_text")
    ours = {f"{way} {theirs}": metrics[f"{way}/{name}"] for way in ways for theirs, name in names.items()}
    for evaluator, figures in part.get("official", {}).items():
        theirs = {f"{way} {name}": value for way in ways for name, value in figures.get(way, {}).items()}
        if evaluator == "clip4clip_multi_sentence":  # ranks groups of captions in this direction, another question
            theirs = {name: value for name, value in theirs.items() if not name.startswith("video_to_text")}
        # BLIP names the side that is fetched: text for an image, image for a text.
        blip = {
            f"{way} R{k}": figures.get(f"{side}_r{k}")
            for side, way in (("img", ways[0]), ("txt", ways[1]))
            for k in (1, 5, 10)
        }
        theirs |= {name: value for name, value in blip.items() if value is not None}
        for name in ours.keys() & theirs.keys():
            case.number(f"{part['name']} {evaluator} {name}", ours[name], theirs[name], SINGLE_PRECISION)
