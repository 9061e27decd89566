"""The real library on both ends, where it is installed: it reads what is written here, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_other_libraries import LORAS, OTHER, bases, export_tool, import_tool, trained  # noqa: F401 (fixtures)
from transformers import AutoModelForSeq2SeqLM

from mtvl.export import load_export, write_export

peft = pytest.importorskip("peft", reason="the peft library is not installed; its key layout is tested without it")

EXACT = 0.0  # measured: the same operations in the same order


@pytest.mark.parametrize(("backbone", "options"), LORAS, ids=str)
def test_it_reads_what_is_written_here(trained, tmp_path, backbone, options, monkeypatch) -> None:  # noqa: F811
    config, model = trained({"name": "lora", **options}, backbone)
    write_export(tmp_path / "run", model, config)
    monkeypatch.setattr(export_tool, "TOLERANCE", EXACT)
    assert export_tool.main([str(tmp_path / "run"), str(tmp_path / "out"), "--as", "peft", "--check"]) == 0


CASES = [
    ("clip_bart", ["q_proj", "v_proj"], {"bias": "all", "modules_to_save": ["self_attn_layer_norm"]}),
    ("clip_bart", ["fc1", "k_proj"], {"bias": "lora_only", "use_rslora": True}),
    ("clip_t5", ["q", "wi"], {"bias": "none"}),
]


@pytest.mark.parametrize(("backbone", "targets", "more"), CASES, ids=str)
def test_what_it_writes_is_read_here(bases: Path, tmp_path: Path, backbone, targets, more) -> None:  # noqa: F811
    def base():
        return AutoModelForSeq2SeqLM.from_pretrained(bases / backbone)

    settings = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=8, target_modules=targets, **more)
    theirs, random = peft.get_peft_model(base(), settings), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    theirs.save_pretrained(tmp_path / "theirs")
    command = [str(tmp_path / "theirs"), str(tmp_path / "ours"), "--tasks", "vqa", "--backbone-config", *OTHER]
    assert import_tool.main([*command, f"weights={bases / backbone}"]) == 0
    model, _, _ = load_export(tmp_path / "ours")
    model.eval().set_task("vqa")
    assert export_tool.largest_difference(model, theirs.eval()) <= EXACT
    plain = export_tool.largest_difference(model, base().eval())
    assert plain > 1e-2  # without the adapter it is another model
