"""BLIP's modules: site tables, sharing, agreement with transformers, padding, recompute, drop-path, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BlipConfig as HubConfig
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

from mtvl.backbones.blip import Blip, BlipConfig
from mtvl.backbones.blip.config import PARTS
from mtvl.backbones.blip.keys import ALIASES, hub_to_original, original_to_hub, to_original
from mtvl.backbones.blip.tokens import load_blip_tokenizer, train_word_pieces
from mtvl.backbones.blip.vit import DropPath, patches
from mtvl.errors import CheckpointError, ConfigError

ORACLE = 2e-5  # logits up to 6 in size; measured worst case: 1.4e-6


def tiny(kind: str, **options: Any) -> Blip:
    return Blip.build(BlipConfig(kind=kind, preset="tiny", image_size=32, embed_dim=12, **options))


def randomise(model: nn.Module, seed: int = 0, std: float = 0.15) -> nn.Module:
    """Every parameter random, norms round one, so that no term vanishes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * std + ("norm" in name and parameter.dim() == 1)
            )
    return model


def some_inputs(rows: int = 3, frames: int = 0, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels, ids that begin with [CLS], right-padded mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, frames, 3, 32, 32) if frames else (rows, 3, 32, 32)
    ids = torch.randint(4, 118, (rows, 7), generator=generator)
    ids[:, 0] = 2
    mask = torch.arange(7)[None] < torch.tensor([7, 5, 4])[:rows, None]
    return torch.randn(shape, generator=generator), ids.masked_fill(~mask, 0), mask


@pytest.mark.parametrize("kind", PARTS)
def test_the_site_table_covers_the_parameters(kind: str) -> None:
    model, meta = tiny(kind), Blip.build(BlipConfig(kind=kind, preset="tiny", image_size=32, embed_dim=12), meta=True)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    sites = model.sites()
    assert sites == meta.sites()
    assert sum(s.num_parameters for s in sites) == sum(p.numel() for p in model.parameters())
    assert len({s.path for s in sites if not s.is_hook}) == len([s for s in sites if not s.is_hook])
    for site in sites:
        module = model.get_submodule(site.path)
        if site.is_linear:
            assert type(module) is nn.Linear and (site.d_in, site.d_out) == (module.in_features, module.out_features)
            assert site.layer >= 0
        elif site.is_hook:
            assert site.num_parameters == 0 and site.d_in == site.d_out
        elif site.kind == "norm":
            assert isinstance(module, nn.LayerNorm)


def test_building_draws_from_its_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = tiny("joint"), tiny("joint"), tiny("joint", init_seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.match.weight, other.match.weight)


def test_a_tied_decoder_has_its_own_self_attention_alone() -> None:
    model = tiny("pretrain")
    for encoder, decoder in zip(model.text.layers, model.decoder.layers, strict=True):
        assert encoder.ffn is decoder.ffn and encoder.cross is decoder.cross and encoder.ffn_norm is decoder.ffn_norm
        assert encoder.cross_norm is decoder.cross_norm
        assert encoder.attn is not decoder.attn and encoder.attn_norm is not decoder.attn_norm
    assert model.decoder.embed is model.text.embed
    own = {n for n, _ in model.named_parameters() if n.startswith("decoder.layers.")}
    assert own == {n for n in model.state_dict() if n.startswith("decoder.layers.") and ".attn" in n}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "vqaa"}, ("'vqaa'", "did you mean 'vqa'")),
        ({"preset": "bas"}, ("'bas'", "did you mean 'base'")),
        ({"vision": {"widht": 3}}, ("backbone.vision.widht", "did you mean 'width'")),
        ({"text": {"width": 30}}, ("width 30", "heads 4")),
        ({"image_size": 30}, ("30", "patch size 8")),
        ({"image_size": -16}, ("backbone.vision.image_size", "int above 0", "-16")),
        ({"vision": {"patch": 0}}, ("backbone.vision.patch", "int above 0", "found 0")),
        ({"vision": {"heads": "four"}}, ("backbone.vision.heads", "an int", "'four'")),
        ({"text": {"dropout": 1}}, ("backbone.text.dropout", "from 0 to below 1")),
        ({"text": {"norm_eps": "small"}}, ("backbone.text.norm_eps", "a float above 0", "'small'")),
        ({"embed_dim": 0}, ("backbone.embed_dim", "at least 1")),
    ],
)
def test_configurations_that_cannot_be(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        Blip.build(BlipConfig(**{"preset": "tiny", "image_size": 32, **options}), meta=True)
    assert all(word in str(error.value) for word in words), error.value


def test_numbers_that_yaml_reads_as_texts_are_numbers() -> None:
    vision, text = BlipConfig(
        preset="tiny", vision={"norm_eps": "1e-5"}, text={"norm_eps": "1e-7", "dropout": 0}
    ).shapes()
    assert (vision.norm_eps, text.norm_eps, text.dropout) == (1e-5, 1e-7, 0)


def hub_config() -> HubConfig:
    """transformers' configuration of the tiny sizes, with BLIP's own constants where its defaults differ."""
    text = {"vocab_size": 120, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 40, "bos_token_id": 118, "pad_token_id": 0,
            "eos_token_id": 3, "sep_token_id": 3}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
              "patch_size": 8, "layer_norm_eps": 1e-6}  # fmt: skip
    return HubConfig(text_config=text, vision_config=vision, image_text_hidden_size=12)


def into_hub(model: Blip, hub: nn.Module) -> nn.Module:
    """Our weights in transformers' model, every tensor of it filled."""
    state = {original_to_hub(n): t for n, t in to_original(model.state_dict(), 8).items() if n != "temp"}
    missing, unexpected = hub.load_state_dict(state, strict=False)
    assert not unexpected and all(n.endswith("position_ids") for n in missing), (missing, unexpected)
    return hub.eval()


@torch.no_grad()
def test_transformers_gives_the_same_matching_and_features() -> None:
    model = randomise(tiny("retrieval")).eval()
    hub = into_hub(model, BlipForImageTextRetrieval(hub_config()))
    pixels, ids, mask = some_inputs()
    tokens = model.see(pixels)
    with_enc = torch.cat([torch.full_like(ids[:, :1], 119), ids[:, 1:]], 1)
    found = model.match(model.fuse(ids, mask, tokens)[:, 0])
    expected = hub(input_ids=with_enc, pixel_values=pixels, attention_mask=mask.long(), use_itm_head=True).itm_score
    assert float((found - expected).abs().max()) < ORACLE
    sims = model.image_features(tokens) @ model.text_features(model.read(ids, mask)).T
    expected = hub(input_ids=ids, pixel_values=pixels, attention_mask=mask.long(), use_itm_head=False).itm_score
    assert float((sims - expected).abs().max()) < ORACLE


@torch.no_grad()
def test_transformers_gives_the_same_captions_and_answers() -> None:
    pixels, ids, mask = some_inputs()
    begun = torch.cat([torch.full_like(ids[:, :1], 118), ids[:, 1:]], 1)
    model = randomise(tiny("caption")).eval()
    hub = into_hub(model, BlipForConditionalGeneration(hub_config()))
    found = model.decode_states(ids, mask, model.see(pixels).flatten(1, 2))
    expected = hub(input_ids=begun, pixel_values=pixels, attention_mask=mask.long()).logits
    assert float((found - expected)[mask].abs().max()) < ORACLE

    model = randomise(tiny("vqa")).eval()
    hub = into_hub(model, BlipForQuestionAnswering(hub_config()))
    whole = torch.ones_like(mask)  # transformers 5.23 does not hand the question's mask on to cross-attention
    states = model.fuse(ids, whole, model.see(pixels))
    seen = hub.vision_model(pixels).last_hidden_state
    asked = torch.cat([torch.full_like(ids[:, :1], 119), ids[:, 1:]], 1)
    theirs = hub.text_encoder(asked, attention_mask=whole.long(), encoder_hidden_states=seen).last_hidden_state
    assert float((states - theirs).abs().max()) < ORACLE
    logits = hub.text_decoder(begun, attention_mask=mask.long(), encoder_hidden_states=theirs).logits
    assert float((model.decode_states(ids, mask, states) - logits)[mask].abs().max()) < ORACLE


def test_names_go_both_ways() -> None:
    for kind in PARTS:
        original = to_original(tiny(kind).state_dict(), 8)
        assert [hub_to_original(original_to_hub(name)) for name in original] == list(original)
    assert not set(ALIASES) & set(to_original(tiny("retrieval").state_dict(), 8))


@torch.no_grad()
def test_padding_and_other_rows_change_nothing() -> None:
    model = randomise(tiny("joint")).double().eval()
    pixels, ids, mask = some_inputs()
    pixels = pixels.double()
    tokens = model.see(pixels)
    states = model.fuse(ids, mask, tokens)
    answers = model.decode_states(ids, mask, states, mask)
    for row, length in enumerate((7, 5, 4)):
        alone = (ids[row : row + 1, :length], mask[row : row + 1, :length])
        one = model.fuse(*alone, model.see(pixels[row : row + 1]))
        assert float((one - states[row, :length]).abs().max()) < 1e-12
        text = model.read(*alone)
        assert float((text[:, 0] - model.read(ids, mask)[row, 0]).abs().max()) < 1e-12
        logits = model.decode_states(*alone, one, alone[1])
        assert float((logits - answers[row, :length]).abs().max()) < 1e-12


@torch.no_grad()
def test_missing_frames_are_not_seen_and_order_is() -> None:
    model = randomise(tiny("joint")).eval()
    pixels, ids, mask = some_inputs(frames=3)
    there = torch.tensor([[True, True, False]]).expand(3, 3)
    cut = model.fuse(ids, mask, model.see(pixels[:, :2]))
    masked = model.fuse(ids, mask, model.see(pixels), there)
    assert torch.allclose(cut, masked, atol=1e-6)
    assert not torch.allclose(model.fuse(ids, mask, model.see(pixels)), masked, atol=1e-3)


@pytest.mark.parametrize("kind", ["pretrain", "nlvr2"])
def test_recompute_changes_no_gradient(kind: str) -> None:
    """Bit for bit, with dropout and drop-path on."""

    def gradients(recompute: bool) -> list[torch.Tensor]:
        model = randomise(tiny(kind, vision={"drop_path": 0.4})).train()
        model.set_recompute(recompute)
        pixels, ids, mask = some_inputs(frames=2)
        torch.manual_seed(3)
        tokens = model.see(pixels)
        out = model.fuse(ids, mask, tokens).sum() + model.fuse(ids, mask, tokens.flip(1)).square().sum()
        if kind == "pretrain":
            out = out + model.read(ids, mask).sum() + model.decode_states(ids, mask, tokens.flatten(1, 2)).sum()
        out.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    kept, again = gradients(False), gradients(True)
    assert len(kept) == len(again) > 50
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_drop_path_leaves_out_whole_rows_and_keeps_the_mean() -> None:
    layer, ones = DropPath(0.25).train(), torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    out = layer(ones)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(layer.eval()(ones), ones)
    rates = [b.drop_path.rate for b in tiny("vqa", vision={"layers": 3}).vision.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1])


def test_patches_are_the_convolution() -> None:
    convolution = nn.Conv2d(3, 5, 8, 8)
    pixels = torch.randn(2, 3, 32, 32)
    found = nn.functional.linear(patches(pixels, 8), convolution.weight.flatten(1), convolution.bias)
    assert torch.allclose(found, convolution(pixels).flatten(2).transpose(1, 2), atol=1e-5)


def test_a_picture_of_another_size_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="32 x 32 pixels.*backbone.image_size"):
        tiny("caption").see(torch.zeros(1, 3, 40, 40))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    train_word_pieces(
        ["a small red cube behind the large blue ball", "is there a ball?"] * 3, folder / "tokenizer.json", 90
    )
    return folder


def test_tokenizer_is_berts_with_two_tokens_behind(vocabulary: Path) -> None:
    tokenizer = load_blip_tokenizer(str(vocabulary))
    ids = tokenizer.encode("A red Cube?")
    assert tokenizer.decode(ids) == "a red cube?" and tokenizer.raw.unk_token_id not in ids
    assert tokenizer.wrap(ids) == [2, *ids, 3]
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.eos_id) == (0, 2, 3)
    assert (tokenizer.dec_id, tokenizer.enc_id) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert tokenizer.decode([tokenizer.dec_id, *ids, tokenizer.eos_id, 0]) == "a red cube?"
    model = tiny("vqa", tokenizer=str(vocabulary), text={"vocab": len(tokenizer), "eos_id": 3})
    assert model.tokenizer().enc_id == model.text_shape.enc_id
    with pytest.raises(ConfigError, match="backbone.text.vocab"):
        tiny("vqa", tokenizer=str(vocabulary)).tokenizer()


def test_a_vocabulary_file_gives_the_public_ids(tmp_path: Path) -> None:
    pieces = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "red", "cube", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = load_blip_tokenizer(str(tmp_path))
    assert tokenizer.wrap(tokenizer.encode("Red cubes")) == [101, 103, 104, 105, 102]
    assert (tokenizer.dec_id, tokenizer.enc_id) == (106, 107)


def test_a_folder_without_a_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="vocab.txt"):
        load_blip_tokenizer(str(tmp_path))
    with pytest.raises(ConfigError, match="backbone.tokenizer"):
        tiny("vqa").tokenizer()
