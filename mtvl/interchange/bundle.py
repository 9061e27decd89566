"""A trained model as a backbone of its own, from which other runs start (`backbone.weights=FOLDER`)."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from mtvl.backbones.clip_config import VISUAL_KINDS
from mtvl.config import RunConfig
from mtvl.model import Model, make_backbone

# What transformers writes into a configuration beside the model's own settings.
_BOOKKEEPING = ("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "tokenizer_class")


def write_bundle(folder: Path, model: Model, config: RunConfig, task: str = "") -> None:
    """Write language model, visual embedding, towers and tokenizer in the layout of a bundled backbone.

    Adapters (of `task`, where there are private ones) are folded into the weights; `model` is left as it was. Raises PlanError
    for a method whose adapters are no change of linear maps, and ConfigError where there is no tokenizer.
    """
    backbone = model.backbone
    tokenizer = backbone.tokenizer()
    model.merge(task)
    try:
        left_out = backbone.tied_names()
        names = [
            n for n in backbone.state_dict() if not (".adapter." in n or n.startswith("visual_tower.") or n in left_out)
        ]
        state = {name: backbone.state_dict()[name].detach().float().cpu().clone().contiguous() for name in names}
    finally:
        model.unmerge()
    text = backbone.text_config(backbone.config).to_diff_dict()  # without the added rows
    content = {
        "family": backbone.family, "frames": backbone.max_frames,
        "text": {k: v for k, v in sorted(text.items()) if k not in _BOOKKEEPING},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, str(folder / "model.safetensors"))
    content |= _write_towers(folder, model, config)
    tokenizer.raw.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "backbone.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_towers(folder: Path, model: Model, config: RunConfig) -> dict[str, str]:
    """Towers as the model sees through them, the trained one included; their names for backbone.json."""
    frozen = make_backbone({**config.backbone, "train_tower": False}, meta=True)
    names = {}
    for kind in (kind for kind in VISUAL_KINDS if kind in model.backbone.widths):
        key = "tower" if kind == "grid" else "frame_tower"
        trained = model.backbone.visual_tower if kind == "grid" else None
        tower = trained if trained is not None else frozen.tower(kind)
        names[key] = "stored" if tower is None else tower.name
        if tower is not None:
            state = {k: v.detach().cpu().contiguous() for k, v in tower.state_dict().items()}
            save_file(state, str(folder / f"{key}.safetensors"))
    return names
