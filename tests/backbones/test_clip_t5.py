"""CLIP-T5 against transformers' own T5, and what visual tokens change in it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from mtvl.backbones.attention import attention
from mtvl.backbones.clip_t5 import ClipT5
from mtvl.backbones.clip_t5_config import ClipT5Config, text_config
from mtvl.config import parse_section
from mtvl.errors import CheckpointError, ConfigError
from mtvl.types import Decoding


@pytest.fixture(scope="module")
def section(tiny_backbones) -> dict:
    """Stacks of different depth."""
    section = tiny_backbones["clip_t5"].section
    return {**section, "dropout": 0.0, "text": {**section["text"], "num_decoder_layers": 3}}


@pytest.fixture(scope="module")
def backbone(section) -> ClipT5:
    model = ClipT5.build(parse_section(ClipT5Config, section)).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.15)
        model.t5.shared.weight[1] = 0.5 * model.t5.shared.weight[5:].sum(0)  # like every word: an end now and then
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def oracle(backbone) -> T5ForConditionalGeneration:
    """transformers' model with the same weights and plain attention."""
    config = copy.deepcopy(backbone.t5.config)
    config._attn_implementation = "eager"
    model = T5ForConditionalGeneration(config)
    model.load_state_dict(backbone.t5.state_dict())
    model.config.num_layers = model.config.num_decoder_layers  # its `generate` sizes the cache by the encoder's depth
    return model.eval()


def test_without_a_picture_it_is_transformers_t5(backbone, oracle, make_batch) -> None:
    batch = make_batch(pictures=0, backbone="clip_t5")
    expected = oracle(input_ids=batch.source_ids, attention_mask=batch.source_mask.long(), labels=batch.target_ids)
    found = backbone.decode(backbone.encode(batch), batch.target_ids)
    assert oracle.config._attn_implementation == "eager" and found.abs().max() > 1
    torch.testing.assert_close(found, expected.logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("num_beams", "early"), [(1, False), (4, False), (4, True)])
def test_searches_are_those_of_transformers(backbone, oracle, make_batch, num_beams, early) -> None:
    """With pictures, ids and scores. All rows end: the scores of unfinished ones follow another rule there."""
    batch = make_batch(pictures=2, rows=8, source_tokens=10, backbone="clip_t5")
    memory = backbone.encode(batch)
    expected = oracle.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=memory.hidden), attention_mask=memory.mask.long(),
        max_length=16, num_beams=num_beams, do_sample=False, early_stopping=early, no_repeat_ngram_size=2,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    decoding = Decoding(max_tokens=16, num_beams=num_beams, early_stopping=early, no_repeat_ngram=2)
    ids, scores = backbone.generate(memory, decoding)
    found, wanted = ([row[: row.index(1) + 1] for row in x.tolist()] for x in (ids, expected.sequences))
    assert found == wanted and len({tuple(row) for row in found}) > 3
    assert all(set(row[len(ended) :]) <= {0} for row, ended in zip(ids.tolist(), found, strict=True))
    if num_beams > 1:
        torch.testing.assert_close(scores, expected.sequences_scores, atol=1e-5, rtol=0)


def test_no_end_is_forced(backbone, make_batch) -> None:
    never = copy.deepcopy(backbone)
    never.t5.shared.weight[1] = 0
    batch = make_batch(backbone="clip_t5")
    ids, _ = never.generate(never.encode(batch), Decoding(max_tokens=6, num_beams=3))
    assert ids.shape[1] == 6 and 1 not in ids


def test_only_text_has_an_order(backbone, make_batch, monkeypatch) -> None:
    """Visual tokens in another order give the same text and themselves in that order; words do not."""
    batch = make_batch(backbone="clip_t5")
    plain, order = backbone.encode(batch).hidden, torch.randperm(9, generator=torch.Generator().manual_seed(1))
    forward = backbone.visual.forward
    monkeypatch.setattr(backbone.visual, "forward", lambda *given: forward(*given)[:, order])
    mixed = backbone.encode(batch).hidden
    torch.testing.assert_close(mixed[:, :7], plain[:, :7], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[:, 7:], plain[:, 7:][:, order], atol=1e-5, rtol=0)
    words = dataclasses.replace(batch, source_ids=batch.source_ids.flip(1), source_mask=batch.source_mask.flip(1))
    assert (backbone.encode(words).hidden[:, :7].flip(1) - mixed[:, :7])[0].abs().max() > 1e-3


@pytest.mark.parametrize("is_causal", [True, False])
def test_keys_put_in_front_have_no_position(is_causal) -> None:
    """`attention` with an adapter and a bias, against the formula."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    module, front = nn.Module(), (draw(2, 3, 2, 4), draw(2, 3, 2, 4))
    module.is_causal = is_causal
    module.adapter = lambda key, value: (torch.cat([front[0], key], 2), torch.cat([front[1], value], 2))
    query, key, value, bias = draw(2, 3, 5, 4), draw(2, 3, 5, 4), draw(2, 3, 5, 4), draw(1, 3, 5, 5)
    found, _ = attention(module.eval(), query, key, value, None, scaling=1.0, position_bias=bias)
    scores = query @ torch.cat([front[0], key], 2).mT
    scores[..., 2:] += bias
    if is_causal:
        scores[..., 2:] += torch.full((5, 5), -torch.inf).triu(1)
    expected = scores.softmax(-1) @ torch.cat([front[1], value], 2)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_the_base_model_has_the_published_size_and_every_parameter_one_site() -> None:
    model = ClipT5.build(ClipT5Config(), meta=True)
    sites = model.sites()
    assert sum(s.num_parameters for s in sites) == sum(p.numel() for p in model.parameters()) == 224_540_160
    assert model.t5.shared.weight.shape == (32_200, 768)
    assert sum(s.num_parameters for s in sites if s.kind == "visual") == 1_581_312
    norms = [s for s in sites if s.kind == "norm"]
    assert len(norms) == 62 and all(s.frozen_in_paper for s in norms)
    assert [s.path for s in sites if s.num_bias and s.kind != "visual"] == []
    tables = [s.path for s in sites if s.path.endswith("relative_attention_bias")]
    assert len(tables) == 2 and all(s.layer == -1 for s in sites if s.path in tables)


def test_public_rows_are_kept_and_the_rows_after_them_are_seeded(section, tmp_path) -> None:
    """As of T5's 32,128 rows: the last ones, without use there, are visual slots here."""
    config = parse_section(ClipT5Config, section)
    public_config = text_config(config)
    public_config.vocab_size = 68
    torch.manual_seed(1)
    public = T5ForConditionalGeneration(public_config)
    public.save_pretrained(tmp_path)
    other = {k: v for k, v in section.items() if k not in ("preset", "text")}
    models = [
        ClipT5.build(parse_section(ClipT5Config, {**other, "weights": str(tmp_path), "pieces": 60, "init_seed": seed}))
        for seed in (0, 0, 1)
    ]
    tables = [m.t5.shared.weight for m in models]
    assert tables[0].shape[0] == 77 and models[0].added_rows() == {"t5.shared.weight": 68}
    for model in models:
        assert torch.equal(model.t5.shared.weight[:68], public.shared.weight)
        assert torch.equal(model.t5.lm_head.weight, model.t5.shared.weight)
        name = "decoder.block.2.layer.1.EncDecAttention.q.weight"
        assert torch.equal(model.t5.get_parameter(name), public.get_parameter(name))
    assert torch.equal(tables[0][68:], tables[1][68:]) and not torch.equal(tables[0][68:], tables[2][68:])
    assert 0.7 < float(tables[0].detach()[68:].std()) < 1.3  # as T5's own rows, and as in the reference


def test_checkpoints_of_another_family_are_refused(section) -> None:
    with pytest.raises(ConfigError, match="checkpoint of the family 'bart', 'clip_t5' is of 't5'"):
        ClipT5.build(ClipT5Config(weights="tiny"), meta=True)
    with pytest.raises(ConfigError, match="unknown 'backbone.preset' 'bsae'.*base"):
        ClipT5.build(ClipT5Config(preset="bsae"), meta=True)


def test_the_large_sibling_is_a_preset() -> None:
    model = ClipT5.build(ClipT5Config(preset="large"), meta=True)
    assert len(model.t5.encoder.block) == len(model.t5.decoder.block) == 24 and model.t5.shared.weight.shape[1] == 1024


def test_a_sentencepiece_tokenizer_wraps_as_t5_does(section, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "\n".join(f"the {a} {b} is {c}" for a in ("red", "blue") for b in ("star", "ring") for c in "xyz")
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "spiece"), vocab_size=20, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    options = {**section, "tokenizer": str(tmp_path), "num_sentinels": 100}
    options["text"] = {**options["text"], "vocab_size": 20}
    tokenizer = ClipT5.build(parse_section(ClipT5Config, options), meta=True).tokenizer()
    assert (tokenizer.pad_id, tokenizer.eos_id, len(tokenizer), tokenizer.num_special) == (0, 1, 120, 1)
    ids = tokenizer.encode("the red star is x")
    assert tokenizer.wrap(ids) == [*ids, 1] and tokenizer.decode([0, *ids, 1, 0]) == "the red star is x"
    assert max(ids) < 20 and tokenizer.encode("<extra_id_0>") == [119]

    tokenizer.raw.save_pretrained(tmp_path / "saved")  # tokenizer.json alone
    again = ClipT5.build(parse_section(ClipT5Config, {**options, "tokenizer": str(tmp_path / "saved")}), meta=True)
    assert again.tokenizer().encode("the red star is x") == ids
    with pytest.raises(ConfigError, match="has 120 ids, the token table only 25 text rows"):
        ClipT5.build(parse_section(ClipT5Config, {**options, "num_sentinels": 5}), meta=True).tokenizer()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no tokenizer.json and no spiece.model"):
        ClipT5.build(
            parse_section(ClipT5Config, {**options, "tokenizer": str(tmp_path / "empty")}), meta=True
        ).tokenizer()
