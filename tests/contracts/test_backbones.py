"""What every registered backbone promises, on a tiny random build. A new entry of BACKBONES arrives here untouched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mtvl.errors import ConfigError
from mtvl.model import make_backbone
from mtvl.types import Batch, Decoding

MakeBatch = Callable[..., Batch]
TOLERANCE = 1e-13  # float64 logits up to 8 in size; measured worst case over this file: 4.9e-15
FLOAT32 = 2e-6  # where a backbone answers in float32; measured worst case: 2.1e-7


@pytest.fixture
def tiny(tiny_backbones: dict[str, Any], backbone_name: str) -> Any:
    """Tiny settings of the backbone under test."""
    assert backbone_name in tiny_backbones, f"give {backbone_name} an entry in TINY_BACKBONES of tests/conftest.py"
    return tiny_backbones[backbone_name]


@pytest.fixture
def build(tiny: Any) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        return make_backbone({**tiny.section, **options}).double().eval()

    return make


@pytest.fixture
def make_batch(make_batch: MakeBatch) -> MakeBatch:
    """Batches in float64: invariances then hold to a tolerance that nothing real slips through."""

    def make(*args: Any, **options: Any) -> Batch:
        batch = make_batch(*args, **options)
        return replace(batch, features=batch.features.double())

    return make


def logits(backbone: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return backbone.decode(backbone.encode(batch), batch.target_ids)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def rows_of(batch: Batch, rows: slice) -> Batch:
    tensors = {k: v[rows] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    return replace(batch, uids=batch.uids[rows], **tensors)


def test_logits_of_labels_are_those_of_all_positions(build: Callable[..., Any], make_batch: MakeBatch) -> None:
    backbone, batch = build(), make_batch()
    assert bool((batch.target_ids == -100).any())
    with torch.no_grad():
        memory = backbone.encode(batch)
        found = backbone.label_logits(memory, batch.target_ids)
        assert difference(found, backbone.decode(memory, batch.target_ids)[batch.target_ids != -100]) < 1e-12
        assert backbone.label_logits(memory, torch.full_like(batch.target_ids, -100)).shape == (0, found.shape[1])


def test_the_site_table_covers_the_parameters(build: Callable[..., Any]) -> None:
    backbone = build()
    sites = backbone.sites()
    assert max(Counter(s.path for s in sites).values()) == 1
    assert sum(s.num_parameters for s in sites) == sum(p.numel() for p in backbone.parameters())
    for site in sites:
        module = backbone.get_submodule(site.path)
        bias = getattr(module, "bias", None)
        assert site.num_bias == (bias.numel() if isinstance(bias, torch.Tensor) else 0), site.path
        if site.is_hook:
            assert (site.num_parameters, site.d_in) == (0, site.d_out) and not hasattr(module, "adapter"), site.path
            continue
        assert next(module.parameters(recurse=False), None) is not None, site.path
        assert site.stack in ("encoder", "decoder", "visual") and site.layer >= -1
        if site.is_linear:
            assert type(module) is nn.Linear, site.path
            assert (site.d_in, site.d_out) == (module.in_features, module.out_features), site.path
            assert site.layer >= 0, site.path
        elif site.kind == "norm":
            assert "norm" in type(module).__name__.lower(), site.path


def test_meta_sites_are_the_real_ones(build: Callable[..., Any], tiny: Any) -> None:
    meta = make_backbone(tiny.section, meta=True)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert meta.sites() == build().sites()


def test_building_twice_gives_the_same_weights(build: Callable[..., Any]) -> None:
    before = torch.get_rng_state()
    first, again, other = build(), build(), build(init_seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert first.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_shapes(pictures: int, build: Callable[..., Any], make_batch: MakeBatch, tiny: Any) -> None:
    backbone, batch = build(), make_batch(pictures=pictures)
    memory = backbone.encode(batch)
    length = batch.source_ids.shape[1] + pictures * tiny.visual_tokens
    assert memory.hidden.shape[:2] == memory.mask.shape == (3, length)
    assert memory.mask.dtype == torch.bool
    assert torch.equal(memory.mask.sum(1), batch.source_mask.sum(1) + length - batch.source_ids.shape[1])
    out = backbone.decode(memory, batch.target_ids)
    assert out.shape[:2] == batch.target_ids.shape and out.shape[2] >= tiny.text_rows
    assert bool(torch.isfinite(out).all())


def test_pictures_count(build: Callable[..., Any], make_batch: MakeBatch, tiny: Any) -> None:
    """Each picture changes the answer, and the order of two is seen."""
    backbone, batch = build(), make_batch(pictures=2)
    two = logits(backbone, batch)
    for other in (
        batch.features[:, :1],
        batch.features[:, :0],
        batch.features.flip(1),
        torch.zeros_like(batch.features),
    ):
        assert difference(two, logits(backbone, replace(batch, features=other))) > 1e-3
    four = replace(batch, features=batch.features.repeat(1, 2, 1, 1), feature_mask=batch.feature_mask.repeat(1, 2, 1))
    if tiny.most_pictures:
        with pytest.raises(ValueError, match="pictures"):
            backbone.encode(four)
    else:
        assert difference(two, logits(backbone, four)) > 1e-3


def test_padding_changes_nothing(build: Callable[..., Any], make_batch: MakeBatch, tiny: Any) -> None:
    backbone, batch = build(), make_batch()
    want = logits(backbone, batch)
    pad = (0, 4)
    wider = replace(
        batch,
        source_ids=nn.functional.pad(batch.source_ids, pad, value=tiny.pad_id),
        source_mask=nn.functional.pad(batch.source_mask, pad, value=False),
        target_ids=nn.functional.pad(batch.target_ids, pad, value=-100),
    )
    assert difference(want, logits(backbone, wider)[:, : want.shape[1]]) < TOLERANCE
    # what stands under the padding is not seen either
    noise = batch.source_ids.masked_fill(~batch.source_mask, 9)
    assert difference(want, logits(backbone, replace(batch, source_ids=noise))) < TOLERANCE
    # while a token that is not padding is seen
    changed = batch.source_ids.clone()
    changed[:, 1] = 9  # the first is a mark that a backbone may write itself
    assert difference(want, logits(backbone, replace(batch, source_ids=changed))) > 1e-3


def test_the_future_is_not_seen(build: Callable[..., Any], make_batch: MakeBatch) -> None:
    backbone, batch = build(), make_batch()
    changed = batch.target_ids.clone()
    changed[:, -1] = 9
    assert difference(logits(backbone, batch), logits(backbone, replace(batch, target_ids=changed))) < TOLERANCE


def test_rows_do_not_meet(build: Callable[..., Any], make_batch: MakeBatch) -> None:
    backbone, batch = build(), make_batch(rows=4, pictures=2)
    whole = logits(backbone, batch)
    for row in range(4):
        alone = rows_of(batch, slice(row, row + 1))
        assert difference(whole[row : row + 1], logits(backbone, alone)) < TOLERANCE


@pytest.mark.parametrize("num_beams", [1, 5])
def test_generation_follows_the_teacher_forced_model(
    num_beams: int, build: Callable[..., Any], make_batch: MakeBatch, tiny: Any
) -> None:
    """With the key-value cache: each greedy token is the argmax; a beam's score is its mean log-probability."""
    backbone, batch = build(), make_batch()
    memory = backbone.encode(batch)
    decoding = Decoding(num_beams=num_beams, max_tokens=7)
    ids, scores = backbone.generate(memory, decoding)
    with torch.no_grad():
        forced = backbone.decode(memory, ids[:, 1:]).log_softmax(-1)
    chosen = forced.gather(2, ids[:, 1:, None])[..., 0]
    pad, eos = tiny.pad_id, tiny.eos_id
    for row in range(ids.shape[0]):
        tokens = [t for t in ids[row, 1:].tolist() if t != pad]
        if num_beams == 1:
            assert tokens == forced[row, : len(tokens)].argmax(-1).tolist()
            continue
        # an EOS that is forced at the last position costs nothing; the length counts the start id and not EOS
        total = float(chosen[row, : len(tokens)].sum())
        if tiny.forces_eos and tokens[-1] == eos and len(tokens) == decoding.max_tokens - 1:
            total -= float(chosen[row, len(tokens) - 1])
        length = len(tokens) + 1 - (tokens[-1] == eos)
        assert float(scores[row]) == pytest.approx(total / length, abs=1e-5)


def test_choose_compares_the_first_differing_token(build: Callable[..., Any], make_batch: MakeBatch) -> None:
    backbone, batch = build(), make_batch()
    memory = backbone.encode(batch)
    scores = backbone.choose(memory, [[0, 7, 2], [0, 9, 11, 2]])
    with torch.no_grad():
        want = backbone.decode(memory, torch.tensor([[0, 7, 2]]).expand(3, -1)).log_softmax(-1)[:, 1, [7, 9]]
    assert difference(scores, want) < FLOAT32
    with pytest.raises(ConfigError, match="do not differ in one token"):
        backbone.choose(memory, [[0, 7, 2], [0, 7, 3], [0, 9, 2]])


def test_recompute_can_be_switched_off_again(build: Callable[..., Any], make_batch: MakeBatch) -> None:
    backbone, batch = build().train(), make_batch()
    calls: list[str] = []
    for path in (s.path for s in backbone.sites() if s.is_linear):
        backbone.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: calls.append(path))
    seen = []
    for enabled in (False, True, False):
        backbone.set_recompute(enabled)
        calls.clear()
        backbone.decode(backbone.encode(batch), batch.target_ids).sum().backward()
        seen.append(len(calls))
    assert seen[1] == 2 * seen[0] and seen[2] == seen[0]


def test_without_a_tokenizer_the_error_says_what_to_set(build: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"'backbone\.tokenizer'.*'backbone\.weights'.*folder"):
        build().tokenizer()
