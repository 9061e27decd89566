"""Turn a released VL-Adapter checkpoint of CLIP-BART or CLIP-T5, or LoRA of the PEFT library, into an export of this project.

    python tools/import_checkpoint.py CHECKPOINT OUT [--backbone-config key=value ...] [--petl key=value ...]
                                      [--tasks a,b,c] [--aliases FILE]

CHECKPOINT is a `.pth` (read without unpickling objects) or `.safetensors` file with the complete state. Method, sharing,
tasks and sizes are read off it. OUT then holds `adapter.safetensors` and `adapter.json`, as a run's `export/` does.

The frozen language model is not part of an export. `--backbone-config weights=facebook/bart-base` names the public
weights that the checkpoint was trained on; they are compared with the checkpoint tensor by tensor. Without `weights`
the checkpoint's own language model is written to OUT/backbone and the export refers to it by its absolute path.

`--backbone-config` takes keys of a recipe's `backbone` section, e.g. `tower=rn50 visual_tokens=36 num_slots=100
tokenizer=facebook/bart-base text.encoder_attention_heads=12`. A state does not tell the number of BART's attention
heads (default: width / 64), visual tokens (36), sentinel and slot rows (100 each).

`--petl` takes options of the method that a state does not tell, e.g. `alpha=32` of LoRA, or `train_norms=false`.

CHECKPOINT may also be a PEFT folder (adapter_config.json and adapter_model.safetensors of a LoRA on plain BART or T5), or a
folder of such folders, one for each task and called like it. `weights` are then those that it was trained on (default:
the name in adapter_config.json). The visual embedding is read from visual.safetensors beside it, where
tools/export_checkpoint.py has written one; otherwise it is the backbone's own, trained or not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mtvl.backbones.clip_bart_config import PRESETS as BART_PRESETS
from mtvl.backbones.clip_t5_config import PRESETS as T5_PRESETS
from mtvl.backbones.frame_tower import FRAME_TOWERS
from mtvl.backbones.towers import TOWERS
from mtvl.config import RunConfig, apply_overrides, to_plain, validate
from mtvl.errors import CheckpointError, ConfigError, MtvlError
from mtvl.export import load_export, write_export
from mtvl.interchange.peft import family_of, is_peft, load_peft, petl_section, read_peft
from mtvl.interchange.plain import VISUAL
from mtvl.model import Model, build_model, make_backbone
from mtvl.reference import Aliases, ReferenceFacts, describe_reference, load_reference, strip_prefix
from mtvl.tasks import TASKS_DIR
from mtvl.tasks.visual import visual_kinds

HEAD_WIDTH = 64  # of BART
PRESETS = {"bart": BART_PRESETS, "t5": T5_PRESETS}
NESTED = ("model", "state_dict")  # where training scripts put the state when they save more than it


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name, without a data-parallel prefix. CheckpointError when it is not just tensors."""
    try:
        if file.suffix == ".safetensors":
            return strip_prefix(load_file(str(file)))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{file} cannot be read as tensors: {str(error).splitlines()[0]}") from None
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise CheckpointError(f"{file}: expected names and tensors, found {type(content).__name__} with other values")
    return strip_prefix(content)


def read_aliases(file: Path | None) -> Aliases | None:
    """`state_aliases` of a JSON file: other names of tensors that the checkpoint holds once."""
    if file is None:
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["state_aliases"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} has no table 'state_aliases': {error}") from None


def backbone_section(facts: ReferenceFacts, overrides: list[str], tasks: tuple[str, ...]) -> dict[str, Any]:
    """The recipe's `backbone` section for a state trained on `tasks`, with the user's `overrides`."""
    kinds = visual_kinds(tasks, TASKS_DIR)
    if len(kinds) != 1:
        raise ConfigError(
            f"a released state has one projection, of pictures or of videos; {', '.join(tasks)} are tasks of both kinds"
        )
    section: dict[str, Any] = {"name": facts.backbone, "visual": list(kinds), "num_sentinels": 100, "num_slots": 100}
    section = apply_overrides({"backbone": section}, [f"backbone.{item}" for item in overrides])["backbone"]
    key, option, towers, default = {
        "grid": ("tower", "feature_width", TOWERS, "rn101"),
        "frame": ("frame_tower", "frame_width", FRAME_TOWERS, "vit_b32"),
    }[kinds[0]]
    tower = section.setdefault(key, default)
    if tower in towers and towers[tower].grid[1] != facts.feature_width:
        section.setdefault(option, facts.feature_width)
    if section.get("weights"):
        return section
    vocab_size = facts.vocab_total - section["num_sentinels"] - section["num_slots"]
    text = {**facts.text, "vocab_size": vocab_size, **_heads(facts), **section.get("text", {})}
    if text["vocab_size"] < 1:
        raise ConfigError(
            f"the checkpoint has {facts.vocab_total} token rows, fewer than num_sentinels {section['num_sentinels']} + "
            f"num_slots {section['num_slots']}; give both in --backbone-config"
        )
    presets = PRESETS[facts.family]
    preset = section.setdefault("preset", "large" if text["d_model"] == presets["large"]["d_model"] else "base")
    section["text"] = {k: v for k, v in text.items() if presets.get(preset, {}).get(k) != v}
    return section


def trained_by(facts: ReferenceFacts) -> dict[str, Any]:
    """The recipe's `petl` section. The reference never trained T5's norms, though it was asked to."""
    keeps_norms = facts.family == "t5" and facts.petl["name"] != "full"
    return {**facts.petl, "train_norms": False} if keeps_norms else facts.petl


def _heads(facts: ReferenceFacts) -> dict[str, int]:
    """What a state of BART does not tell; T5's table of positions has a column for each head."""
    if facts.family != "bart":
        return {}
    heads = max(1, facts.text["d_model"] // HEAD_WIDTH)
    return {"encoder_attention_heads": heads, "decoder_attention_heads": heads}


def frozen(model: Model) -> dict[str, torch.Tensor]:
    """Copies of the frozen tensors that public weights hold: without the added token rows."""
    rows = {f"backbone.{name}": first for name, first in model.backbone.added_rows().items()}
    return {
        name: parameter.detach()[: rows.get(name)].clone()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }


def compare_base(public: dict[str, torch.Tensor], model: Model, weights: str) -> None:
    """CheckpointError unless the checkpoint's frozen tensors are the public ones."""
    found = frozen(model)
    differing = [name for name, value in public.items() if not torch.equal(value, found[name])]
    if differing:
        raise CheckpointError(
            f"{len(differing)} of {len(public)} frozen tensors differ from {weights}, e.g. {', '.join(differing[:3])}; name "
            "the weights that it was trained on, or leave 'weights' out to keep the checkpoint's own"
        )


def write_base(folder: Path, model: Model, config: RunConfig) -> None:
    """Write the language model of `model`, without adapters, in the layout of a bundled backbone."""
    backbone = model.backbone
    tied = backbone.tied_names()
    state = {k: v.contiguous() for k, v in backbone.state_dict().items() if ".adapter." not in k and k not in tied}
    section = dict(config.backbone)
    keys = {*PRESETS[backbone.family]["base"], *section["text"]}
    full = backbone.text_config(type(backbone.config)(**section)).to_dict()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, str(folder / "model.safetensors"))
    towers = {key: section[key] for key in ("tower", "frame_tower") if key in section}
    content = {"family": backbone.family, "text": {key: full[key] for key in sorted(keys)}, **towers}
    (folder / "backbone.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def import_checkpoint(
    file: Path,
    out: Path,
    overrides: list[str],
    tasks: tuple[str, ...] = (),
    aliases: Aliases | None = None,
    petl: list[str] | None = None,
) -> Model:
    """Read `file`, write the export to `out`, read it back, and return the model. Raises MtvlError subclasses."""
    state = read_state(file)
    facts = describe_reference(state, aliases)
    tasks = tasks or facts.tasks
    if not tasks:
        raise ConfigError("a fully fine-tuned checkpoint does not name its tasks; give them with --tasks a,b,c")
    method = apply_overrides({"petl": trained_by(facts)}, [f"petl.{item}" for item in petl or []])["petl"]
    config = RunConfig(tasks=tasks, backbone=backbone_section(facts, overrides, tasks), petl=method)
    validate(config)
    model = build_model(config)
    public, weights = frozen(model), config.backbone.get("weights", "")
    load_reference(model, tasks, state, aliases)
    if weights:
        compare_base(public, model, weights)
    elif public:
        write_base(out / "backbone", model, config)
        section = {k: v for k, v in config.backbone.items() if k not in ("preset", "text")}
        section["weights"] = str((out / "backbone").resolve())
        config = RunConfig(**{**vars(config), "backbone": section})
    write_and_read(out, model, config, file)
    return model


def import_peft(
    folder: Path, out: Path, overrides: list[str], tasks: tuple[str, ...] = (), petl: list[str] | None = None
) -> Model:
    """The same for PEFT's LoRA. The tasks are `tasks`, or the folders' names where there are several."""
    adapters = read_peft(folder)
    first = next(iter(adapters.values()))
    if "" not in adapters and tasks and set(tasks) != set(adapters):
        raise ConfigError(f"--tasks names {', '.join(tasks)}, {folder} holds {', '.join(adapters)}")
    tasks = tasks or tuple(name for name in adapters if name)
    if not tasks:
        raise ConfigError("a PEFT folder does not name its tasks; give them with --tasks a,b,c")
    section: dict[str, Any] = {"name": family_of(first), "visual": list(visual_kinds(tasks, TASKS_DIR))}
    if base := first.settings.get("base_model_name_or_path"):
        section["weights"] = base
    section = apply_overrides({"backbone": section}, [f"backbone.{item}" for item in overrides])["backbone"]
    backbone = make_backbone(section, meta=True)
    method = petl_section(adapters, backbone.sites(), backbone.text_name)
    method = apply_overrides({"petl": method}, [f"petl.{item}" for item in petl or []])["petl"]
    config = RunConfig(tasks=tasks, backbone=section, petl=method)
    validate(config)
    model = build_model(config)
    load_peft(model, adapters)
    write_and_read(out, model, config, first.folder)
    if not (folder / VISUAL).is_file():
        print(f"note: {folder} has no {VISUAL}; the visual embedding is the backbone's own")
    return model


def write_and_read(out: Path, model: Model, config: RunConfig, source: Path) -> None:
    """Write the export and read it back; CheckpointError when anything differs."""
    files = (
        [source] if source.is_file() else sorted(f for f in source.iterdir() if f.suffix in (".json", ".safetensors"))
    )
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    write_export(out, model, config, extra={"imported_from": source.name, "imported_sha256": digest})
    reread, _, _ = load_export(out)
    for name, value in reread.state_dict().items():
        if not torch.equal(value, model.state_dict()[name]):
            raise CheckpointError(f"{out} was written but {name} reads back differently")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--backbone-config", nargs="*", default=[], metavar="key=value", help="keys of 'backbone'")
    parser.add_argument("--petl", nargs="*", default=[], metavar="key=value", help="options that no state tells")
    parser.add_argument("--tasks", default="", help="names of the tasks, when the checkpoint does not hold them")
    parser.add_argument("--aliases", type=Path, help="JSON whose 'state_aliases' lists names that the file leaves out")
    options = parser.parse_args(arguments)
    tasks = tuple(name for name in options.tasks.split(",") if name)
    try:
        if options.out.is_file():
            raise ConfigError(f"{options.out} is a file; give a folder for the export")
        given = (options.checkpoint, options.out, options.backbone_config, tasks)
        if options.checkpoint.is_dir():
            if not is_peft(options.checkpoint):
                raise CheckpointError(f"{options.checkpoint} is a folder without adapter_config.json: no PEFT folder")
            model = import_peft(*given, options.petl)
        else:
            model = import_checkpoint(*given, read_aliases(options.aliases), options.petl)
    except MtvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(model.plan.table())
    print(f"wrote {options.out} and read it back: {json.dumps(to_plain(list(model.plan.tasks)))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
