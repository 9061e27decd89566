"""PEFT folders and plain transformers models: what is written there computes the same, and comes back the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, BartForConditionalGeneration, T5ForConditionalGeneration

from mtvl.backbones.clip_bart_config import ClipBartConfig, text_config
from mtvl.backbones.clip_t5_config import ClipT5Config
from mtvl.backbones.clip_t5_config import text_config as t5_text_config
from mtvl.config import RunConfig
from mtvl.errors import PlanError
from mtvl.export import load_export, write_export
from mtvl.interchange.peft import write_peft
from mtvl.interchange.plain import write_merged
from mtvl.model import build_model, make_backbone

ROOT = Path(__file__).parents[2]
TASKS = ("vqa", "gqa")
LOGITS = (
    2e-5  # float32 logits up to 12; measured worst case of like models: 4.3e-6 (tools/export_checkpoint.py --check)
)
SMALL = {
    "clip_bart": {"vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
                  "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40},
    "clip_t5": {"vocab_size": 60, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2,
                "num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16},
}  # fmt: skip
OTHER = ["tower=tiny", "visual_tokens=9", "num_sentinels=5", "num_slots=12", "dropout=0.0"]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


export_tool, import_tool = load_tool("export_checkpoint"), load_tool("import_checkpoint")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders with plain public weights of both families."""
    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    bart = text_config(ClipBartConfig(preset="tiny", text={**SMALL["clip_bart"], "init_std": 0.2}))
    t5 = t5_text_config(ClipT5Config(preset="tiny", text=SMALL["clip_t5"]))
    for name, model in (("clip_bart", BartForConditionalGeneration(bart)), ("clip_t5", T5ForConditionalGeneration(t5))):
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms of a real model are not all alike
                parameter.data += 0.1 * torch.randn(parameter.shape)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def trained(tiny_config, bases):
    """A recipe and its model with every trained tensor random, on the public weights."""

    def build(petl, backbone="clip_bart"):
        config = tiny_config(petl, tasks=TASKS, backbone=backbone, dropout=0.0, weights=str(bases / backbone), text={})
        model, random = build_model(config).eval(), torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter += torch.randn(parameter.shape, generator=random) * 0.2
        return config, model

    return build


def text_only(batch):
    batch.features = batch.features[:, :0]
    batch.feature_mask = batch.feature_mask[:, :0]
    return batch


def plain_logits(plain, batch, pad):
    return plain(
        input_ids=batch.source_ids.masked_fill(~batch.source_mask, pad), attention_mask=batch.source_mask.long(),
        labels=batch.target_ids,
    ).logits  # fmt: skip


LORAS = [
    ("clip_bart", {"rank": 3, "alpha": 7.0, "dropout": 0.0}),
    ("clip_bart", {"rank": 3, "share": "none", "train_norms": True, "places": ["self_attn.q", "ffn.up"]}),
    ("clip_bart", {"rank": 2, "share": "down", "layers": [1], "places": ["cross_attn.out"]}),
    ("clip_t5", {"rank": 3, "share": "none", "train_biases": False}),
]


@pytest.mark.parametrize(("backbone", "options"), LORAS, ids=str)
def test_peft_folders_come_back_bit_for_bit(trained, make_batch, tmp_path, backbone, options, capsys) -> None:
    config, model = trained({"name": "lora", **options}, backbone)
    write_export(tmp_path / "run", model, config)
    assert export_tool.main([str(tmp_path / "run"), str(tmp_path / "peft"), "--as", "peft"]) == 0, (
        capsys.readouterr().err
    )
    command = [str(tmp_path / "peft"), str(tmp_path / "back"), "--tasks", ",".join(TASKS), "--backbone-config", *OTHER]
    assert import_tool.main(command) == 0, capsys.readouterr().err
    again, reread, _ = load_export(tmp_path / "back")
    again.eval()
    assert reread.petl["rank"] == options["rank"]
    for task in TASKS:
        batch = make_batch(task, pictures=2, backbone=backbone)
        for each in (model, again):
            each.set_task(task)
        assert torch.equal(model.logits(batch), again.logits(batch))
    if options.get("share", "all") == "none":
        assert sorted(p.name for p in (tmp_path / "peft").iterdir()) == ["gqa", "visual.safetensors", "vqa"]


def test_the_layout_is_the_librarys(trained, tmp_path) -> None:
    """Names as peft 0.21 writes them for LoRA on q and v of BART with bias="all" and a saved norm."""
    config, model = trained({"name": "lora", "rank": 3, "alpha": 6.0, "dropout": 0.1, "train_norms": True})
    assert write_peft(tmp_path, model, config) == [tmp_path]
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA" and settings["task_type"] == "SEQ_2_SEQ_LM"
    assert settings["target_modules"] == ["q_proj", "v_proj"] and settings["bias"] == "all"
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (3, 6, 0.1)
    tensors = {k: tuple(v.shape) for k, v in load_file(tmp_path / "adapter_model.safetensors").items()}
    start = "base_model.model.model.decoder.layers.0"
    assert tensors[f"{start}.encoder_attn.q_proj.lora_A.weight"] == (3, 32)
    assert tensors[f"{start}.encoder_attn.q_proj.lora_B.weight"] == (32, 3)
    assert tensors[f"{start}.encoder_attn.q_proj.base_layer.bias"] == (32,)
    assert tensors[f"{start}.encoder_attn.k_proj.bias"] == (32,)
    assert tensors[f"{start}.fc1.bias"] == (48,)
    assert tensors["base_model.model.model.encoder.layernorm_embedding.weight"] == (32,)
    assert "model.encoder.layernorm_embedding" in settings["modules_to_save"]
    # 36 halves, 38 biases of linear maps, 12 norms with two tensors each; nothing of the visual embedding
    assert len(tensors) == 2 * 12 + (6 * 2 + 10 * 2) + 2 * 12


def test_the_formula_of_a_foreign_adapter(trained, bases, make_batch, tmp_path, capsys) -> None:
    """A folder as peft itself writes it, with rank-stabilised scale, against weights changed by hand."""
    plain = BartForConditionalGeneration.from_pretrained(bases / "clip_bart").eval()
    random, tensors = torch.Generator().manual_seed(1), {}
    for path, module in plain.named_modules():
        if path.endswith("fc1"):
            down, up = torch.randn(4, 32, generator=random), torch.randn(48, 4, generator=random)
            tensors |= {f"base_model.model.{path}.lora_A.weight": down, f"base_model.model.{path}.lora_B.weight": up}
            module.weight.data += (6 / 4**0.5) * up @ down
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": True, "bias": "none", "rank_pattern": {},
                "base_model_name_or_path": str(bases / "clip_bart"), "use_dora": False, "of_the_future": None}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    command = [str(folder), str(tmp_path / "out"), "--tasks", "vqa", "--backbone-config", *OTHER]
    assert import_tool.main(command) == 0, capsys.readouterr().err
    assert "has no visual.safetensors" in capsys.readouterr().out
    model, config, _ = load_export(tmp_path / "out")
    assert config.petl["places"] == ["ffn.up"] and config.petl["train_biases"] is False
    batch = text_only(make_batch("vqa"))
    model.eval().set_task("vqa")
    with torch.no_grad():
        difference = model.logits(batch)[..., :60] - plain_logits(plain, batch, 1)
    assert float(difference.abs().max()) < LOGITS

    def refused(change, drop=()):
        (folder / "adapter_config.json").write_text(json.dumps({**settings, **change}))
        save_file(
            {k: v for k, v in tensors.items() if not any(d in k for d in drop)}, folder / "adapter_model.safetensors"
        )
        assert import_tool.main(command) == 1
        return capsys.readouterr().err

    assert "expected peft_type LORA, found 'IA3'" in refused({"peft_type": "IA3"})
    assert "'use_dora' is True" in refused({"use_dora": True})
    assert "'rank_pattern' is {'fc1': 8}" in refused({"rank_pattern": {"fc1": 8}})
    assert "'of_the_future' is 3" in refused({"of_the_future": 3})
    assert "is of rank 5 by its settings, found ((4, 32), (48, 4))" in refused({"r": 5})
    assert "a number for 'r', found None" in refused({"r": None})
    assert "but not bart.model.decoder.layers.1.fc1" in refused({}, ["decoder.layers.1"])
    assert "found ((4, 32), None)" in refused({}, ["decoder.layers.1.fc1.lora_B"])
    (folder / "adapter_model.safetensors").unlink()
    assert import_tool.main(command) == 1 and "has no adapter_model.safetensors" in capsys.readouterr().err
    (folder / "adapter_config.json").write_text("{")
    assert import_tool.main(command) == 1 and "is damaged" in capsys.readouterr().err
    (folder / "adapter_config.json").unlink()
    assert import_tool.main(command) == 1 and "no PEFT folder" in capsys.readouterr().err


MERGED = [
    ("clip_bart", {"name": "lora", "rank": 3, "share": "none"}),
    ("clip_bart", {"name": "ia3"}),
    ("clip_bart", {"name": "full"}),
    ("clip_t5", {"name": "lora", "rank": 3, "train_biases": False}),
]


@pytest.mark.parametrize(("backbone", "petl"), MERGED, ids=str)
def test_merged_weights_are_a_plain_model(trained, make_batch, tmp_path, backbone, petl) -> None:
    config, model = trained(petl, backbone)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    write_merged(tmp_path, model, "gqa")
    after = model.state_dict()
    assert not model.is_merged and all(torch.equal(v, after[n]) for n, v in before.items())
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert type(plain) is type(model.backbone.text) and plain.config._attn_implementation == "sdpa"
    model.set_task("gqa")
    batch = text_only(make_batch("gqa", backbone=backbone))
    with torch.no_grad():
        assert float((model.logits(batch) - plain_logits(plain, batch, plain.config.pad_token_id)).abs().max()) < LOGITS
        # With the visual embedding beside it, it is the whole model, pictures included.
        bare = make_backbone(config.backbone).eval()
        bare.text.load_state_dict(plain.state_dict())
        visual = load_file(tmp_path / "visual.safetensors")
        bare.visual.load_state_dict(
            {k.removeprefix("backbone.visual."): v for k, v in visual.items() if ".visual." in k}
        )
        batch = make_batch("gqa", pictures=2, backbone=backbone)
        own = model.logits(batch)
        assert float((own - bare.decode(bare.encode(batch), batch.target_ids)).abs().max()) < LOGITS
        assert float((own - model.logits(text_only(batch))).abs().max()) > 100 * LOGITS


def test_the_command_says_what_is_wrong(trained, tmp_path, capsys) -> None:
    config, model = trained({"name": "lora", "rank": 2, "share": "none"})
    write_export(tmp_path / "run", model, config)

    def fails(*arguments: str) -> str:
        assert export_tool.main([str(tmp_path / "run"), *arguments]) == 1
        return capsys.readouterr().err

    assert "give --task, one of vqa, gqa" in fails(str(tmp_path / "new"), "--as", "merged")
    message = fails(str(tmp_path / "new"), "--as", "merged", "--task", "gqqa")
    assert "has parts for vqa, gqa only, not for 'gqqa'" in message
    assert "--check compares with another library" in fails(
        str(tmp_path / "new"), "--as", "backbone", "--task", "gqa", "--check"
    )
    assert "--task belongs to" in fails(str(tmp_path / "new"), "--as", "peft", "--task", "gqa")
    assert "is not empty" in fails(str(tmp_path / "run"), "--as", "peft")
    (tmp_path / "file").touch()
    assert "is a file; give a new folder" in fails(str(tmp_path / "file"), "--as", "peft")
    assert import_tool.main([str(tmp_path / "run"), str(tmp_path / "file")]) == 1
    assert "is a file; give a folder" in capsys.readouterr().err
    assert export_tool.main([str(tmp_path / "absent"), str(tmp_path / "new"), "--as", "peft"]) == 1
    assert "the folder does not exist" in capsys.readouterr().err
    config, model = trained({"name": "adapter", "bottleneck": 2})
    with pytest.raises(PlanError, match="method 'lora' alone, this model has 'adapter'"):
        write_peft(tmp_path / "new", model, config)
    with pytest.raises(PlanError, match="cannot be merged"):
        write_merged(tmp_path / "new", model)
    assert not (tmp_path / "new").exists()
    target = [str(tmp_path / "merged"), "--as", "merged", "--task", "gqa", "--check"]
    assert export_tool.main([str(tmp_path / "run"), *target]) == 0
    out = capsys.readouterr().out
    assert "no tokenizer was written" in out and "largest difference of logits" in out


def test_a_trained_model_is_the_backbone_of_further_runs(tiny_config, make_batch, tmp_path, capsys) -> None:
    """After pre-training: language model, visual embedding and tower are where they were, and an adapter starts from there."""
    section = {"weights": "tiny", "text": {}, "tower": "", "visual_tokens": 36, "num_sentinels": 100, "num_slots": 100}
    config = tiny_config({"name": "full"}, tasks=TASKS, dropout=0.0, train_tower=True, **section)
    model, random = build_model(config).eval(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter += torch.randn(parameter.shape, generator=random) * 0.01
    write_export(tmp_path / "run", model, config)
    assert export_tool.main([str(tmp_path / "run"), str(tmp_path / "new"), "--as", "backbone"]) == 0, (
        capsys.readouterr().err
    )
    section = {**config.backbone, "weights": str(tmp_path / "new")}
    section.pop("train_tower")
    after = RunConfig(tasks=TASKS, backbone=section, petl={"name": "adapter", "bottleneck": 4})
    further = build_model(after).eval()
    tower, batch = further.backbone.tower("grid"), make_batch("vqa")
    assert not any(".adapter." in n and "text" in n for n in load_file(tmp_path / "new" / "model.safetensors"))
    pixels = torch.randn(3, 1, 112 * 112, 3, generator=random)
    for each in (model, further):
        each.set_task("vqa")
    batch.features = pixels
    with torch.no_grad():
        own = model.logits(batch)
        batch.features = tower.grids(pixels)
        assert torch.equal(own, further.logits(batch))
    assert further.backbone.tokenizer().encode("a red star") == model.backbone.tokenizer().encode("a red star")
