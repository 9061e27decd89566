"""The recorded cases of BLIP, UniAdapter and UniTrans pass, and a falsified one fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from check_parity import main  # noqa: E402

CASES = {
    "blip": (
        "caption", "nlvr2", "pos_embed", "pretrain", "retrieval", "retrieval_large_like", "retrieval_metrics",
        "retrieval_two_ranks", "vqa", "vqa_large_like",
    ),
    "uniadapter": (
        "blocks_as_coded", "paper_cross_modal", "paper_pfa", "paper_unimodal", "retrieval_image_as_coded",
        "retrieval_video_frame_aware", "retrieval_video_frame_aware_no_key_adapter", "vqa_as_coded",
    ),
    "unitrans": ("paper_mcam", "paper_qasn", "paper_vcra"),
}  # fmt: skip


Edit = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
Edited = Callable[[str, str, Edit], str]


@pytest.fixture
def edited(golden: Path, tmp_path: Path) -> Edited:
    """`edited(FAMILY, CASE, edit)`: a folder with this case alone, after `edit` has changed its facts and tensors."""

    def make(family: str, case: str, edit: Edit) -> str:
        source, copy = golden / family / case, tmp_path / "x"
        facts = json.loads(source.with_suffix(".json").read_text())
        file = source.with_suffix(".safetensors")
        tensors = load_file(str(file)) if file.exists() else {}
        edit(facts, tensors)
        if tensors:
            save_file(tensors, str(copy.with_suffix(".safetensors")))
        copy.with_suffix(".json").write_text(json.dumps(facts))
        return str(tmp_path)

    return make


@pytest.mark.parametrize("family", CASES)
def test_recorded_cases_pass(golden: Path, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(golden / family), "--require-all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["PASS", case] for case in CASES[family]]


@pytest.mark.parametrize(
    ("family", "case", "key"),
    [
        ("blip", "nlvr2", "expect/logits"),
        ("blip", "nlvr2", "state/text_encoder.encoder.layer.6.crossattention.output.merge_layer.weight"),
        ("uniadapter", "vqa_as_coded", "expect/answer_loss"),
        ("unitrans", "paper_vcra", "state/b_C_kv"),
        ("unitrans", "paper_vcra", "expect/grad_cross_attention_C/s"),
    ],
)
def test_a_falsified_number_fails(
    edited: Edited, family: str, case: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def falsify(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors[key] = tensors[key] * 1.001

    assert main([edited(family, case, falsify)]) == 1
    assert capsys.readouterr().out.startswith(f"FAIL {case}")


def without(*parts: str) -> Edit:
    """Facts of these names, and tensors whose names hold one of them, are left out."""

    def edit(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for part in parts:
            facts.pop(part, None)
        for name in [n for n in tensors if any(part in n for part in parts)]:
            del tensors[name]

    return edit


def without_second_names(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for names in facts["tied"].values():
        for name in names:
            del tensors[f"state/{name}"]


def with_more_pictures_than_texts(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """The first two texts of the evaluation, and of its results those that do not depend on the others."""
    without("eval_score", "as_coded_itc")(facts, tensors)
    for name in (
        "input/eval_text_ids",
        "input/eval_text_mask",
        "expect/eval_text_feat",
        "expect/blip_itm_as_coded_itm",
    ):
        tensors[name] = tensors[name][:2].clone()
    for name in ("expect/eval_sims", "expect/eval_itm_logits_enc_first"):
        tensors[name] = tensors[name][:, :2].clone()


def with_one_block(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name in [n for n in tensors if n.endswith(("_1", "/x_2", "/h_2")) and "/h_1" not in n and "/x_1" not in n]:
        del tensors[name]
    without("state/block1.")(facts, tensors)


@pytest.mark.parametrize(
    ("family", "case", "edit"),
    [
        ("blip", "retrieval", with_more_pictures_than_texts),
        ("unitrans", "paper_qasn", with_one_block),
        ("blip", "caption", without("generate/greedy")),
        ("blip", "caption", without_second_names),
        ("blip", "pretrain", without_second_names),
        ("blip", "nlvr2", without("expect/grad/", "counts", "tied")),
        ("blip", "retrieval", without("embed_dim")),
        ("blip", "retrieval_metrics", without("video_protocol", "expect_median_rank")),
        ("uniadapter", "retrieval_image_as_coded", without("embed_dim", "frozen_by_name_accident")),
    ],
)
def test_what_was_not_recorded_is_not_asked_for(edited: Edited, family: str, case: str, edit: Edit) -> None:
    assert main([edited(family, case, edit), "--require-all"]) == 0


def with_total(facts: dict[str, Any], tensors: dict[str, torch.Tensor], rank: int = 1) -> None:
    own = f"expect/rank{rank}/"
    tensors[own + "loss_total"] = tensors[own + "loss_itc"] + tensors[own + "loss_itm"]


def with_average(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    pair = [tensors[f"state/{name}.weight"] for name in ("text_proj_m", "text_proj")]
    tensors["expect/after/text_proj_m.weight"] = torch.lerp(pair[1], pair[0], facts["momentum"])


def with_other_search(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """The search of two beams once more, its shortest length said by the case instead of its name."""
    keep = {
        k.replace("beam2_min1", "beam2"): v for k, v in tensors.items() if "/generate/" not in k or "beam2_min1" in k
    }
    tensors.clear()
    tensors.update(keep)
    facts["conventions"]["generate"] = facts["conventions"]["generate"].replace("min_length 6", "min_length 1")


@pytest.mark.parametrize(
    ("case", "edit"),
    [
        ("retrieval_two_ranks", with_total),
        ("retrieval_two_ranks", with_average),
        ("caption", with_other_search),
    ],
)
def test_what_a_case_may_record_too_is_compared(edited: Edited, case: str, edit: Edit) -> None:
    assert main([edited("blip", case, edit), "--require-all"]) == 0

    def wrong(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        before = set(tensors)
        edit(facts, tensors)
        for name in set(tensors) - before:
            tensors[name] = tensors[name] + 1

    assert main([edited("blip", case, wrong), "--require-all"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_length 12", "max_length 9", "beyond generate/beam3/ids"),
        ("max_length 12", "length 12", "expected 'max_length NUMBER' in conventions.generate"),
        ("[11, 12, 13]", "[11, 12]", "beyond generate/greedy/ids"),
        ("/beam3/", "/beam3_min1/", "beyond generate/beam3_min1/ids"),
        ("/beam3/", "/sampled/", "unknown search 'sampled'; known: greedy and beamN"),
    ],
)
def test_searches_are_those_of_the_case(
    edited: Edited, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        facts["conventions"] = json.loads(json.dumps(facts["conventions"]).replace(old, new))
        renamed = {name.replace(old, new): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    assert main([edited("blip", "caption", edit), "--verbose"]) == 1
    assert message in capsys.readouterr().out
