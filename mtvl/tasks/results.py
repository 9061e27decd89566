"""Predictions in the forms that the benchmarks' public servers (and official scripts) take.

*Source:* GT-Vision-Lab/VQA and tylin/coco-caption (result JSON), GQA's eval.py, lil-lab/nlvr (CSV),
VALUE-Leaderboard/EvaluationTools (submission samples).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_log = logging.getLogger(__name__)


class ResultFile(NamedTuple):
    """A file ready to be written and sent."""

    name: str
    data: bytes


def vqa_results(texts: Mapping[str, str], stem: str) -> ResultFile:
    """A list of {"question_id", "answer"}; exactly the questions of the split are taken."""
    return _json([{"question_id": _number(uid), "answer": text} for uid, text in texts.items()], f"{stem}_results")


def gqa_results(texts: Mapping[str, str], stem: str) -> ResultFile:
    """A list of {"questionId", "prediction"}; the ids stay text. Answers are compared as they are."""
    return _json([{"questionId": uid, "prediction": text} for uid, text in texts.items()], f"{stem}_results")


def nlvr2_results(texts: Mapping[str, str], stem: str) -> ResultFile:
    """CSV lines identifier,True|False."""
    truth = {"true": "True", "false": "False"}
    chosen = indices({uid: text.strip().lower() for uid, text in texts.items()}, tuple(truth))
    lines = [f"{uid},{list(truth.values())[index]}\n" for uid, index in chosen.items()]
    return ResultFile(f"{stem}_results.csv", "".join(lines).encode())


def coco_results(texts: Mapping[str, str], stem: str) -> ResultFile:
    """A list of {"image_id", "caption"}, one a picture."""
    return _json([{"image_id": _number(uid), "caption": text} for uid, text in texts.items()], f"{stem}_results")


def value_qa_results(texts: Mapping[str, str], choices: Sequence[str], stem: str) -> ResultFile:
    """VALUE's TVQA and How2QA: an object question id -> index of the answer."""
    return _json(indices(texts, choices), f"{stem}_predictions")


def value_caption_results(texts: Mapping[str, str], stem: str) -> ResultFile:
    """VALUE's TVC and YC2C: one object {"clip_id", "descs": [{"desc"}]} a line; only the first description is read."""
    lines = [json.dumps({"clip_id": _number(uid), "descs": [{"desc": text}]}) + "\n" for uid, text in texts.items()]
    return ResultFile(f"{stem}_predictions.jsonl", "".join(lines).encode())


def indices(texts: Mapping[str, str], choices: Sequence[str]) -> dict[str, int]:
    """The index in `choices` of each text. A text that is none of them counts as the first choice, said with a count.

    That happens to generated answers only, and a server takes no file with a hole in it. *Source:* VL-Adapter.
    """
    known = {choice: index for index, choice in enumerate(choices)}
    strange = [uid for uid, text in texts.items() if text not in known]
    if strange:
        _log.warning(
            "%d of %d answers are none of %s (e.g. %r for %s) and are written as %s", len(strange), len(texts),
            ", ".join(choices), texts[strange[0]], strange[0], choices[0],
        )  # fmt: skip
    return {uid: known.get(text, 0) for uid, text in texts.items()}


def _json(value: Any, stem: str) -> ResultFile:
    return ResultFile(f"{stem}.json", (json.dumps(value) + "\n").encode())


def _number(uid: str) -> int | str:
    """The id as it stands in the official files: a whole number where it spells one."""
    return int(uid) if uid.isascii() and uid.isdigit() and str(int(uid)) == uid else uid
