"""The parity tool passes on the recorded cases, and fails on every kind of falsified copy of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from check_parity import main  # noqa: E402
from parity.report import EXACT, Report, Tolerance  # noqa: E402
from parity.vl_adapter import METHOD_NAMES  # noqa: E402

CASES = (
    "bart_image_full", "bart_image_single_adapter", "bart_image_multiple_adapters", "bart_image_half_shared",
    "bart_image_hyperformer", "bart_image_single_compacter", "bart_image_multiple_compacters",
    "bart_image_single_lora", "bart_image_multiple_lora", "bart_image_single_prompt", "bart_image_multiple_prompts",
    "bart_generation_single_adapter",
    "t5_image_full", "t5_image_single_adapter", "t5_image_single_compacter", "t5_image_hyperformer",
)  # fmt: skip
SMALL = "bart_image_half_shared"


@pytest.fixture
def folder(golden) -> Path:
    return golden / "vl_adapter"


@pytest.fixture
def copy(folder, tmp_path):
    """`copy(case, edit)`: a copy of a case under another file name; `edit(json, tensors)` falsifies it in place."""

    def make(case: str = SMALL, edit=lambda facts, tensors: None) -> Path:
        facts = json.loads((folder / f"{case}.json").read_text())
        tensors = load_file(str(folder / f"{case}.safetensors"))
        edit(facts, tensors)
        (tmp_path / "x.json").write_text(json.dumps(facts))
        save_file(tensors, str(tmp_path / "x.safetensors"))
        return tmp_path

    return make


@pytest.mark.parametrize("case", CASES)
def test_recorded_cases_pass(folder, capsys, case) -> None:
    assert main([str(folder), "--case", case]) == 0
    out = capsys.readouterr().out.split()
    assert out[:2] == ["PASS", case]
    assert float(out[2]) < 5e-5


def test_what_is_not_registered_is_skipped_unless_all_is_required(copy, capsys, monkeypatch) -> None:
    monkeypatch.setitem(METHOD_NAMES, "half_shared", ("not_yet_a_method", ""))
    target = copy()
    assert main([str(target)]) == 0
    assert capsys.readouterr().out.startswith(f"SKIP {SMALL} ")
    assert main([str(target), "--require-all"]) == 1
    assert capsys.readouterr().out.startswith(f"FAIL {SMALL} skipped")


@pytest.mark.parametrize("key", ["family", "kind", "method", "backbone"])
def test_unknown_names_fail(copy, capsys, key) -> None:
    target = copy(edit=lambda facts, tensors: facts.update({key: "unheard_of"}))
    assert main([str(target)]) == 1
    assert capsys.readouterr().out.startswith(f"FAIL {SMALL} ")


def shift(key: str, by: float, index: int = 0):
    """Move one number of the first tensor whose name starts with `key`."""

    def edit(facts, tensors):
        name = next(n for n in sorted(tensors) if n.startswith(key))
        tensors[name].view(-1)[index] += by

    return edit


def forget(key: str):
    def edit(facts, tensors):
        del tensors[next(n for n in sorted(tensors) if n.startswith(key))]

    return edit


def other_order(facts, tensors):
    facts["mixed_sequence"] = ["vqa", "vqa", "vqa", "vqa"]


def no_decay(facts, tensors):
    next(p for p in facts["trainable_parameters"] if "layer_norm.weight" in p["name"])["weight_decay"] = 0.0


def frozen_norm(facts, tensors):
    moved = facts["trainable_parameters"].pop(0)
    facts["frozen_parameters"].append([moved["name"], moved["shape"]])


FALSE = {
    "weights": shift("state/model.encoder.layers.0.fc1.weight", 1e-2),
    "hidden": shift("expect/vqa/encoder_last_hidden_state", 5e-5),
    "logits": shift("expect/nlvr/logits", 1e-4),
    "token loss": shift("expect/nlvr/token_loss", 5e-5),
    "sample loss": shift("expect/vqa/sample_loss", 5e-5),
    "loss": shift("expect/vqa/loss", 5e-5),
    "gradient": shift("expect/nlvr/grad/model.encoder.layers.1.ff_adapter", 1e-3),
    "gradient norm": shift("expect/nlvr/grad_norm", 1e-3),
    "value after two steps": shift("expect/vqa/after2/", 3e-5),
    "value after mixed steps": shift("expect/mixed/after/", 3e-5),
    "losses of the steps": shift("expect/vqa/optim/losses", 1e-4, index=1),
    "norms of the steps": shift("expect/mixed/grad_norms", 1e-2, index=3),
    "prediction": shift("expect/nlvr/pred_true", 1),
    "not a number": shift("expect/vqa/logits", float("nan")),
    "missing record": forget("expect/vqa/logits"),
    "missing gradient": forget("expect/vqa/grad/model.encoder.layers.0"),
    "missing value after": forget("expect/vqa/after2/model.encoder.layers.0"),
    "missing weight": forget("state/model.encoder.layers.0.fc1.weight"),
    "unknown record": lambda facts, tensors: tensors.update({"expect/vqa/mystery": torch.zeros(1)}),
    "other task order": other_order,
    "decay": no_decay,
    "frozen set": frozen_norm,
    "trainable count": lambda facts, tensors: facts.update(trainable_count=facts["trainable_count"] + 1),
    "total count": lambda facts, tensors: facts.update(total_count=facts["total_count"] - 1),
    "idle set": lambda facts, tensors: facts["idle_trainable"]["vqa"].pop(),
}


def test_a_faithful_copy_under_another_name_passes(copy, capsys) -> None:
    assert main([str(copy())]) == 0
    assert main([str(copy(edit=lambda facts, tensors: facts.update(case="other"))), "--case", "other"]) == 0
    assert capsys.readouterr().out.count("PASS") == 2


@pytest.mark.parametrize("what", FALSE)
def test_a_falsified_copy_fails(copy, capsys, what) -> None:
    assert main([str(copy(edit=FALSE[what]))]) == 1
    assert capsys.readouterr().out.startswith(f"FAIL {SMALL} ")


@pytest.mark.parametrize("edit", [shift("expect/caption/generate/beam5/token_ids", 1, index=3),
                                  shift("expect/caption/generate/beam5/sequence_scores", 1e-4),
                                  shift("expect/caption/generate/greedy_plain/token_ids", 1, index=17)])  # fmt: skip
def test_falsified_generation_fails(copy, edit) -> None:
    assert main([str(copy("bart_generation_single_adapter", edit))]) == 1


def test_the_command_ends_with_the_verdict(tmp_path) -> None:
    (tmp_path / "a.json").write_text('{"family": "unheard_of", "kind": "x"}')
    command = [sys.executable, str(TOOLS / "check_parity.py"), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 1 and done.stdout.startswith("FAIL a ") and "did you mean" not in done.stderr


def test_what_cannot_be_read_is_exit_code_2(tmp_path, capsys) -> None:
    """No folder, a file, an empty folder, a folder of folders, an unknown name, broken files: named, without a verdict."""
    inner = tmp_path / "inner"
    inner.mkdir()

    def said(*arguments: str) -> str:
        assert main([*arguments]) == 2
        found = capsys.readouterr()
        assert found.out == ""
        return found.err

    missing = said(str(tmp_path / "none"))
    assert f"{tmp_path / 'none'}: expected a folder of pairs NAME.json and NAME.safetensors" in missing
    assert "found no such folder" in missing
    empty = said(str(inner))
    assert f"{inner}: expected a folder of pairs NAME.json" in empty and "found no *.json" in empty
    (inner / "a.json").write_text("[1]")
    assert f"there are some in {inner}" in said(str(tmp_path))
    assert "found a file" in said(str(inner / "a.json"))
    assert "expected an object" in said(str(inner))
    (inner / "a.json").write_bytes(b'{"family": "\xff"}')
    assert f"{inner / 'a.json'} cannot be read" in said(str(inner))
    (inner / "a.json").write_text('{"family": "unheard_of", "kind": "x"}')
    assert "no case 'b'" in said(str(inner), "--case", "b") and "known: a" in said(str(inner), "--case", "b")


def test_planned_families_are_skipped(tmp_path, capsys) -> None:
    (tmp_path / "a.json").write_text('{"family": "cm_adapter", "kind": "counts"}')
    assert main([str(tmp_path)]) == 0
    (tmp_path / "a.json").write_text('{"family": "cm_adapter", "kind": "paper_hat"}')
    assert main([str(tmp_path)]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["SKIP", "FAIL"]


def test_comparisons() -> None:
    one = torch.tensor([1.0, 100.0])
    allowed = Tolerance(atol=0.1, rtol=0.01)
    for found, passed in (
        (one, True), (one + torch.tensor([0.1, 1.0]), True), (one + torch.tensor([0.12, 0.0]), False),
        (one + torch.tensor([0.0, 1.2]), False), (one * float("nan"), False), (one[:1], False), (one[:, None], False),
    ):  # fmt: skip
        report = Report()
        report.close("x", found, one, allowed)
        assert report.passed is passed, found
    report = Report()
    report.close("x", torch.tensor([1.0]), torch.tensor([float("nan")]), allowed)
    assert not report.passed
    report = Report()
    report.close("x", torch.tensor([1.0]), torch.tensor([1.0]), EXACT)
    assert report.passed
    assert not Report().passed  # nothing compared
    assert (str(allowed), str(EXACT)) == ("0.1+0.01*|x|", "exact")
