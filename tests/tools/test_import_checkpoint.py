"""Reference checkpoints in, exports out: the model is the same, and what cannot be imported is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BartForConditionalGeneration

from mtvl.backbones.clip_bart_config import ClipBartConfig, text_config
from mtvl.export import load_export
from mtvl.model import build_model
from mtvl.reference import reference_state

FILE = Path(__file__).parents[2] / "tools" / "import_checkpoint.py"
spec = importlib.util.spec_from_file_location("import_checkpoint", FILE)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

TASKS = ("vqa", "nlvr2")
SETTINGS = [
    "tower=tiny", "visual_tokens=9", "num_sentinels=5", "num_slots=12", "dropout=0.0",
    "text.encoder_attention_heads=2", "text.decoder_attention_heads=2",
]  # fmt: skip
T5_TEXT = {
    "vocab_size": 60, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16,
}  # fmt: skip


@pytest.fixture
def trained(tiny_config):
    """A trained model; everything random."""

    def build(petl, **section):
        model = build_model(tiny_config(petl, tasks=TASKS, paper_compat=True, dropout=0.0, **section))
        random = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            if parameter.requires_grad or not section:
                parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
        return model

    return build


@pytest.mark.parametrize("petl", [{"name": "full"}, {"name": "adapter", "bottleneck": 3},
                                  *({"name": "adapter", "bottleneck": 3, "share": s} for s in ("up", "down", "none")),
                                  {"name": "hyperformer", "bottleneck": 3, "task_width": 4, "hidden": 5, "code": 2},
                                  *({"name": "compacter", "bottleneck": 4, "share": s} for s in ("all", "up", "none")),
                                  {"name": "compacter", "bottleneck": 4, "rank": 1},
                                  *({"name": "lora", "rank": 3, "alpha": 7.0, "dropout": 0.0, "share": s}
                                    for s in ("all", "none")),
                                  *({"name": "prompt", "length": 2, "width": 3, "share": s} for s in ("all", "none")),
                                  {"name": "adapter_prompt", "bottleneck": 3, "length": 2, "width": 3},
                                  {"name": "adapter_prompt", "bottleneck": 3, "length": 2, "width": 3, "share": "none",
                                   "prompt_share": "all"},
                                  *({"name": "projection", "train_norms": n} for n in (False, True))], ids=str)  # fmt: skip
def test_an_imported_checkpoint_computes_the_same(trained, petl, tmp_path, make_batch, capsys) -> None:
    model = trained(petl)
    state = reference_state(model, TASKS)
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "LAST.pth")
    told = {"full": ["--tasks", "vqa,nlvr2"], "lora": ["--petl", "alpha=7", "dropout=0"],
            "projection": ["--tasks", "vqa,nlvr2", "--petl", "name=projection", f"train_norms={petl.get('train_norms')}"]}  # fmt: skip
    options = told.get(petl["name"], [])
    code = tool.main([str(tmp_path / "LAST.pth"), str(tmp_path / "out"), "--backbone-config", *SETTINGS, *options])
    assert code == 0, capsys.readouterr().err
    reread, config, content = load_export(tmp_path / "out")
    assert content["imported_from"] == "LAST.pth" and config.tasks == TASKS
    assert reread.plan.added() == model.plan.added() and content["trainable"] == model.plan.num_trainable
    for task in TASKS:
        batch = make_batch(task, pictures=2)
        for each in (model, reread):
            each.set_task(task)
            each.eval()
        assert torch.equal(model.logits(batch), reread.logits(batch))


@pytest.mark.parametrize("petl", [{"name": "full"}, {"name": "adapter", "bottleneck": 3, "train_norms": False},
                                  {"name": "hyperformer", "bottleneck": 3, "task_width": 4, "hidden": 5, "code": 2,
                                   "train_norms": False},
                                  {"name": "compacter", "bottleneck": 4, "train_norms": False},
                                  {"name": "prompt", "length": 2, "width": 3, "share": "none"}], ids=str)  # fmt: skip
def test_a_checkpoint_of_t5_too(tiny_config, petl, tmp_path, make_batch, capsys) -> None:
    config = tiny_config(petl, tasks=TASKS, backbone="clip_t5", dropout=0.0, text=T5_TEXT)
    model = build_model(config)
    random = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    torch.save(reference_state(model, TASKS), tmp_path / "LAST.pth")
    settings = [*(s for s in SETTINGS if "heads" not in s), "text.relative_attention_max_distance=16"]
    command = [str(tmp_path / "LAST.pth"), str(tmp_path / "out"), "--tasks", ",".join(TASKS)]
    assert tool.main([*command, "--backbone-config", *settings]) == 0, capsys.readouterr().err
    reread, read, content = load_export(tmp_path / "out")
    assert read.backbone["name"] == "clip_t5" and content["trainable"] == model.plan.num_trainable
    for task in TASKS:
        batch = make_batch(task, pictures=2, backbone="clip_t5")
        for each in (model, reread):
            each.set_task(task)
            each.eval()
        assert torch.equal(model.logits(batch), reread.logits(batch))


def test_public_weights_are_named_and_compared(trained, tmp_path, capsys) -> None:
    values = {
        "name": "clip_bart",
        "preset": "tiny",
        "text": {"vocab_size": 60, "d_model": 32, "max_position_embeddings": 40},
    }
    torch.manual_seed(0)
    bart = BartForConditionalGeneration(text_config(ClipBartConfig(**values)))
    bart.save_pretrained(tmp_path / "bart")
    model = trained({"name": "adapter", "bottleneck": 3}, weights=str(tmp_path / "bart"), text={})
    state = {k: v.clone() for k, v in reference_state(model, TASKS).items()}
    save_file(state, str(tmp_path / "trained.safetensors"))
    command = [str(tmp_path / "trained.safetensors"), str(tmp_path / "out"), "--backbone-config", *SETTINGS[:5]]
    assert tool.main([*command, f"weights={tmp_path / 'bart'}"]) == 0, capsys.readouterr().err
    assert not (tmp_path / "out" / "backbone").exists()
    reread, _, _ = load_export(tmp_path / "out")
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in reread.state_dict().items())

    state["model.encoder.layers.0.fc1.weight"] += 1e-3
    save_file(state, str(tmp_path / "trained.safetensors"))
    assert tool.main([*command, f"weights={tmp_path / 'bart'}"]) == 1
    assert "1 of " in (message := capsys.readouterr().err) and "encoder.layers.0.fc1.weight" in message


def test_aliases_complete_a_file_that_stores_tensors_once(trained, tmp_path, capsys) -> None:
    model = trained({"name": "adapter", "bottleneck": 3})
    first, aliases, short = {}, {}, {}
    for name, value in reference_state(model, TASKS).items():
        key = first.setdefault(value.data_ptr(), name)
        if key == name:
            short[name] = value.clone()
        else:
            aliases.setdefault(key, []).append(name)
    save_file(short, str(tmp_path / "short.safetensors"))
    (tmp_path / "short.json").write_text(json.dumps({"state_aliases": aliases}))
    command = [str(tmp_path / "short.safetensors"), str(tmp_path / "out")]
    settings = ["--backbone-config", *SETTINGS, "--aliases", str(tmp_path / "short.json")]
    assert tool.main([*command, *settings]) == 0, capsys.readouterr().err
    reread, _, _ = load_export(tmp_path / "out")
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in reread.state_dict().items())


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"a": print}, tmp_path / "code.pth")  # a pickled function must not be loaded
    torch.save({"a": 1}, tmp_path / "number.pth")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    for name, words in {
        "text.pth": "cannot be read", "code.pth": "cannot be read", "number.pth": "expected names and tensors",
        "other.safetensors": "no VL-Adapter state", "absent.pth": "cannot be read",
    }.items():  # fmt: skip
        assert tool.main([str(tmp_path / name), str(tmp_path / "out")]) == 1
        assert words in capsys.readouterr().err, name
    assert not (tmp_path / "out").exists()
