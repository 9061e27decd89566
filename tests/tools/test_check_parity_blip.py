"""The recorded cases of BLIP, UniAdapter and UniTrans pass, and a falsified one fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
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
    golden: Path, tmp_path: Path, family: str, case: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(str(golden / family / f"{case}.safetensors"))
    tensors[key] = tensors[key] * 1.001
    save_file(tensors, str(tmp_path / "x.safetensors"))
    (tmp_path / "x.json").write_text(json.dumps(json.loads((golden / family / f"{case}.json").read_text())))
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith(f"FAIL {case}")
