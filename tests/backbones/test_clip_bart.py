"""CLIP-BART against transformers' own BART, and the visual half against plain loops."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import BartForConditionalGeneration

from mtvl.backbones.attention import ATTENTION
from mtvl.backbones.clip_bart import ClipBart
from mtvl.backbones.clip_bart_config import ClipBartConfig, text_config
from mtvl.backbones.visual import VisualEmbedding
from mtvl.config import parse_section
from mtvl.errors import ConfigError
from mtvl.types import Decoding


@pytest.fixture(scope="module")
def backbone(tiny_backbones) -> ClipBart:
    """Random weights far from their small initial values, so that mistakes show."""
    config = parse_section(ClipBartConfig, tiny_backbones["clip_bart"].section)
    model = ClipBart.build(dataclasses.replace(config, dropout=0.0))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.15)
    return model.eval().requires_grad_(False)


@pytest.fixture
def oracle(backbone) -> BartForConditionalGeneration:
    """transformers' model with the same weights and plain attention."""
    config = backbone.bart.config.__class__(**{**backbone.bart.config.to_dict(), "attn_implementation": "eager"})
    model = BartForConditionalGeneration(config)
    model.load_state_dict(backbone.bart.state_dict())
    return model.eval()


def test_without_a_picture_it_is_transformers_bart(backbone, oracle, make_batch) -> None:
    batch = make_batch(pictures=0)
    expected = oracle(input_ids=batch.source_ids, attention_mask=batch.source_mask.long(), labels=batch.target_ids)
    memory = backbone.encode(batch)
    found = backbone.decode(memory, batch.target_ids)
    assert memory.hidden.shape[1] == batch.source_ids.shape[1]
    assert found.abs().max() > 1
    torch.testing.assert_close(found, expected.logits, atol=1e-5, rtol=0)


def test_greedy_search_is_transformers_greedy_search(backbone, oracle, make_batch) -> None:
    batch = make_batch(pictures=0, rows=5, source_tokens=8)
    for ngram in (0, 2):
        expected = oracle.generate(
            input_ids=batch.source_ids, attention_mask=batch.source_mask.long(), max_length=12, num_beams=1,
            do_sample=False, no_repeat_ngram_size=ngram, forced_eos_token_id=None,
        )  # fmt: skip
        ids, scores = backbone.generate(backbone.encode(batch), Decoding(max_tokens=12, no_repeat_ngram=ngram))
        assert ids.tolist() == expected.tolist() and scores is None


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_beam_scores_are_those_of_the_teacher_forced_model(backbone, make_batch, pictures) -> None:
    batch = make_batch(pictures=pictures, rows=4)
    memory = backbone.encode(batch)
    ids, scores = backbone.generate(memory, Decoding(num_beams=3, max_tokens=9, early_stopping=False))
    targets = ids[:, 1:]
    log_probs = torch.log_softmax(backbone.decode(memory, targets), dim=-1)
    for row, sequence in enumerate(ids.tolist()):
        end = sequence.index(2, 1)  # position of EOS
        each = [float(log_probs[row, i, sequence[i + 1]]) for i in range(end)]
        total = sum(each[:-1] if end == 8 else each)  # an end at the last place is forced and costs nothing
        assert float(scores[row]) == pytest.approx(total / end, abs=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_cache_changes_nothing(backbone, make_batch, num_beams) -> None:
    """The first token after every prefix of a greedy answer is the one that decoding without a cache gives."""
    batch = make_batch(pictures=1, rows=3)
    memory = backbone.encode(batch)
    ids, _ = backbone.generate(memory, Decoding(num_beams=num_beams, max_tokens=8))
    if num_beams == 1:
        best = backbone.decode(memory, ids[:, 1:]).argmax(-1)
        for row, sequence in enumerate(ids.tolist()):
            length = sequence.index(2, 1) if 2 in sequence[1:] else len(sequence) - 1
            assert best[row, :length].tolist() == sequence[1 : length + 1]
    alone = [
        backbone.generate(backbone.encode(rows(batch, i)), Decoding(num_beams=num_beams, max_tokens=8))[0]
        for i in range(3)
    ]
    for row, one in enumerate(alone):
        assert ids[row].tolist() == (one[0].tolist() + [1] * 8)[: ids.shape[1]]


def rows(batch, index: int):
    """One row of a batch."""
    cut = {k: v[index : index + 1] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    return dataclasses.replace(batch, uids=batch.uids[index : index + 1], **cut)


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_attention_kernels_agree(backbone, make_batch, pictures) -> None:
    batch = make_batch(pictures=pictures)
    assert backbone.bart.config._attn_implementation == ATTENTION
    found = backbone.decode(backbone.encode(batch), batch.target_ids)
    backbone.bart.set_attn_implementation("eager")
    try:
        expected = backbone.decode(backbone.encode(batch), batch.target_ids)
    finally:
        backbone.bart.set_attn_implementation(ATTENTION)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_padding_changes_nothing(backbone, make_batch, pictures) -> None:
    batch = make_batch(pictures=pictures)
    longer = dataclasses.replace(
        batch,
        source_ids=torch.nn.functional.pad(batch.source_ids, (0, 4), value=1),
        source_mask=torch.nn.functional.pad(batch.source_mask, (0, 4), value=False),
        target_ids=torch.nn.functional.pad(batch.target_ids, (0, 2), value=-100),
    )
    short, long = backbone.encode(batch), backbone.encode(longer)
    for row in range(3):
        torch.testing.assert_close(
            long.hidden[row][long.mask[row]], short.hidden[row][short.mask[row]], atol=1e-5, rtol=0
        )
    found = backbone.decode(long, longer.target_ids)[:, : batch.target_ids.shape[1]]
    torch.testing.assert_close(found, backbone.decode(short, batch.target_ids), atol=1e-5, rtol=0)


def test_pictures_and_their_order_matter(backbone, make_batch) -> None:
    batch = make_batch(pictures=2)
    swapped = dataclasses.replace(batch, features=batch.features.flip(1))
    memory, other = backbone.encode(batch), backbone.encode(swapped)
    assert memory.hidden.shape[1] == batch.source_ids.shape[1] + 2 * 9 and bool(memory.mask[:, -18:].all())
    assert (memory.hidden - other.hidden).abs().max() > 1e-2


def test_visual_tokens_are_the_four_terms(backbone, make_batch) -> None:
    features = make_batch(pictures=2).features
    table, visual = backbone.bart.model.shared.weight, backbone.visual
    found = visual(features, table)
    pooled = visual.pool(features)
    projection, norm = visual.features["grid"]
    position = visual.position[1](visual.position[0].bias)
    for image in range(2):
        for slot in range(9):
            expected = norm(projection(pooled[:, image, slot])) + position + visual.image_order.weight[image]
            expected = expected + table[len(table) - 1 - slot]  # slots start again for every picture
            torch.testing.assert_close(found[:, image * 9 + slot], expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="at most 2 pictures"):
        visual(torch.cat([features, features], dim=1), table)


def test_pooling_takes_the_largest_value_of_each_window() -> None:
    features = torch.randn(2, 1, 49, 3)
    visual = VisualEmbedding({"grid": 3}, 4, num_tokens=36)
    found = visual.pool(features).view(2, 6, 6, 3)
    grid = features.view(2, 7, 7, 3)
    for i in range(6):
        for j in range(6):  # window of adaptive pooling: floor(i * 7 / 6) to ceil((i + 1) * 7 / 6)
            window = grid[:, i * 7 // 6 : -(-(i + 1) * 7 // 6), j * 7 // 6 : -(-(j + 1) * 7 // 6)]
            assert torch.equal(found[:, i, j], window.amax(dim=(1, 2)))
    assert VisualEmbedding({"grid": 3}, 4, num_tokens=49).pool(features) is features
    with pytest.raises(ValueError, match="square"):
        VisualEmbedding({"grid": 3}, 4, num_tokens=35)


def test_choices_are_compared_where_they_differ(backbone, make_batch) -> None:
    batch = make_batch(pictures=2)
    memory = backbone.encode(batch)
    scores = backbone.choose(memory, [[0, 7, 2], [0, 9, 8, 2]])
    targets = torch.tensor([[0, 7, 2]]).expand(3, -1)
    expected = torch.log_softmax(backbone.decode(memory, targets)[:, 1], dim=-1)[:, [7, 9]]
    torch.testing.assert_close(scores, expected)
    with pytest.raises(ConfigError, match="do not differ"):
        backbone.choose(memory, [[0, 7, 2], [0, 9, 2], [0, 9, 8]])


def test_the_base_model_has_the_published_size_and_every_parameter_one_site() -> None:
    model = ClipBart.build(ClipBartConfig(), meta=True)
    sites = model.sites()
    assert sum(site.num_parameters for site in sites) == sum(p.numel() for p in model.parameters()) == 141_156_864
    assert (
        model.bart.model.shared.weight.shape == (50_465, 768) and model.visual.features["grid"][0].in_features == 2048
    )
    assert sum(s.num_parameters for s in sites if s.kind == "visual") == 1_582_848
    assert sum(s.num_parameters for s in sites if s.kind == "norm") == 49_152
    assert all(p.device.type == "meta" for p in model.parameters())


def test_public_weights_keep_their_rows_and_added_rows_are_seeded(tiny_backbones, tmp_path) -> None:
    section = tiny_backbones["clip_bart"].section
    config = parse_section(ClipBartConfig, section)
    torch.manual_seed(1)
    public = BartForConditionalGeneration(text_config(config))
    public.save_pretrained(tmp_path)
    other = {k: v for k, v in section.items() if k not in ("preset", "text")}
    models = [
        ClipBart.build(parse_section(ClipBartConfig, {**other, "weights": str(tmp_path), "init_seed": seed}))
        for seed in (0, 0, 1)
    ]
    tables = [m.bart.model.shared.weight for m in models]
    assert tables[0].shape[0] == 77 and models[0].added_rows() == {"bart.model.shared.weight": 60}
    for model in models:
        assert torch.equal(model.bart.model.shared.weight[:60], public.model.shared.weight)
        assert torch.equal(model.bart.model.decoder.layers[1].fc2.weight, public.model.decoder.layers[1].fc2.weight)
    assert torch.equal(tables[0][60:], tables[1][60:]) and not torch.equal(tables[0][60:], tables[2][60:])


def test_a_tower_is_random_only_beside_random_weights_and_always_the_same(tiny_backbones, tmp_path) -> None:
    section = tiny_backbones["clip_bart"].section
    config = parse_section(ClipBartConfig, section)
    towers = []
    for _ in range(2):
        torch.rand(1)  # the global generator decides nothing
        towers.append(ClipBart.build(config).tower().fingerprint)
    assert towers[0] == towers[1]
    BartForConditionalGeneration(text_config(config)).save_pretrained(tmp_path)
    trained = {**{k: v for k, v in section.items() if k not in ("preset", "text")}, "weights": str(tmp_path)}
    with pytest.raises(ConfigError, match="'backbone.tower_weights' is empty"):
        ClipBart.build(parse_section(ClipBartConfig, trained)).tower()


def test_a_feature_width_of_its_own_has_no_tower(tiny_backbones) -> None:
    config = parse_section(ClipBartConfig, {**tiny_backbones["clip_bart"].section, "feature_width": 24})
    model = ClipBart.build(config)
    assert model.visual.features["grid"][0].in_features == 24
    with pytest.raises(ConfigError, match="feature_width.* is 24, the tower tiny gives 256"):
        model.tower()
