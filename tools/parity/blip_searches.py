"""The searches of BLIP cases: which were recorded, and with what settings."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from mtvl.backbones.blip import Blip
from mtvl.backbones.decoding import SearchSettings
from parity.blip_parts import compare
from parity.report import EXACT, Case, Report

NAME = re.compile(
    r"(?:greedy|beam(?P<num_beams>\d+))(?:_rep(?P<repetition_penalty>\d+(?:\.\d+)?))?(?:_min(?P<min_length>\d+))?"
)


def check_searches(case: Case, report: Report, model: Blip, memory: torch.Tensor, prompt: tuple[int, ...] = ()) -> None:
    """Ids and scores of all recorded searches over `memory` (B, S, D), behind [DEC] and `prompt`."""
    for name in sorted({key.split("/")[2] for key in case.tensors if key.startswith("expect/generate/")}):
        settings = search_settings(case, model, name, prompt)
        ids, scores = model.eval().search(memory, None, settings)
        expected = case.get(f"expect/generate/{name}/ids")
        if expected is None:
            raise ValueError(f"no ids are recorded for the search {name!r}")
        if expected.shape[1] > ids.shape[1]:
            ids = torch.nn.functional.pad(ids, (0, expected.shape[1] - ids.shape[1]), value=settings.pad_id)
        report.close(f"generate/{name}/ids", ids, expected, EXACT)
        compare(case, report, {f"generate/{name}/scores": scores})


def search_settings(case: Case, model: Blip, name: str, prompt: tuple[int, ...]) -> SearchSettings:
    """A search from [DEC] that ends with [SEP], as transformers 4.15 does it.

    Lengths are those of the case's conventions; the search's name says how many beams, and may say a penalty for
    repetition and a shortest length of its own: beam3_rep1.1, beam2_min1.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"unknown search {name!r}; known: greedy and beamN, with _repX and _minN behind them")
    shape = model.text_shape
    plain = SearchSettings(
        shape.dec_id, shape.eos_id, shape.pad_id, _stated(case, "max_length"), early_stopping=False, force_eos=False,
        prompt=prompt, min_length=_stated(case, "min_length"),
    )  # fmt: skip
    kinds: dict[str, Any] = {"num_beams": int, "repetition_penalty": float, "min_length": int}
    return replace(plain, **{key: kinds[key](text) for key, text in found.groupdict().items() if text is not None})


def recorded_prompt(case: Case) -> tuple[int, ...]:
    """The prompt's ids behind the first token: as the conventions give them, or as the captions begin."""
    found = re.search(r"prompt tokens \[([\d, ]*)\]", str(case.facts["conventions"].get("prompt")))
    if found is not None:
        return tuple(int(text) for text in found[1].split(",") if text.strip())
    return tuple(case.tensors["input/text_ids"][0, 1 : case.facts["prompt_length"]].tolist())


def _stated(case: Case, key: str) -> int:
    """A length that the conventions give for all searches of the case."""
    text = str(case.facts["conventions"].get("generate"))
    found = re.search(rf"{key} (\d+)", text)
    if found is None:
        raise ValueError(f"expected '{key} NUMBER' in conventions.generate, found {text!r}")
    return int(found[1])
