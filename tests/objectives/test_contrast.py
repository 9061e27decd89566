"""Queue, soft targets, hard negatives, agreement of rankings."""

from __future__ import annotations

import math

import pytest
import torch

from mtvl.objectives.contrast import (
    NO_ID,
    FeatureQueue,
    clamp_temperature,
    contrast_loss,
    draw_negatives,
    hard_targets,
    matching_labels,
    matching_loss,
    negative_weights,
    ramped,
    ranking_agreement,
)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_queue_is_a_ring_for_any_batch() -> None:
    queue, written = FeatureQueue(7, 4), []
    assert queue.ids.tolist() == [NO_ID] * 7 and torch.allclose(queue.image.norm(dim=1), torch.ones(7))
    for step, rows in enumerate((3, 3, 3, 1, 9, 7)):
        image, text = unit(rows, 4, seed=step), unit(rows, 4, seed=100 + step)
        ids = torch.arange(rows) + 10 * step
        queue.push(image, text, ids)
        written += list(zip(ids.tolist(), image.tolist(), text.tolist(), strict=True))
        held = sorted(zip(queue.ids.tolist(), queue.image.tolist(), queue.text.tolist(), strict=True))
        assert [h for h in held if h[0] != NO_ID] == sorted(written[-7:])
    assert int(queue.place) == 26 % 7


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_does_not_get_into_the_queue(bad: float) -> None:
    """The step is skipped then; its features would be among the negatives of every step after it."""
    queue, image, text = FeatureQueue(5, 4), unit(3, 4), unit(3, 4, seed=1)
    image[0, 2], text[1, 3] = bad, bad
    queue.push(image, text, torch.tensor([7, 8, 9]))
    assert queue.ids.tolist() == [NO_ID, NO_ID, 9, NO_ID, NO_ID] and int(queue.place) == 3
    assert bool(queue.image.isfinite().all()) and bool(queue.text.isfinite().all())


def test_what_was_not_written_is_nobodys_pair() -> None:
    queue = FeatureQueue(5, 4)
    hard = hard_targets(torch.tensor([3, 4, 3]), torch.cat([torch.tensor([3, 4, 3]), queue.ids]))
    assert hard.tolist() == [[0.5, 0, 0.5, *[0] * 5], [0, 1, 0, *[0] * 5], [0.5, 0, 0.5, *[0] * 5]]


def test_contrast_against_hard_targets_is_cross_entropy() -> None:
    queue, image, text = FeatureQueue(5, 4), unit(3, 4), unit(3, 4, seed=1)
    out = contrast_loss((image, text), (image, text), queue, torch.eye(3, 8), torch.tensor(0.1), 0.0)
    expected = [
        torch.nn.functional.cross_entropy(one @ torch.cat([other, extra]).T / 0.1, torch.arange(3))
        for one, other, extra in ((image, text, queue.text), (text, image, queue.image))
    ]
    assert torch.allclose(out.loss, sum(expected) / 2)
    softer = contrast_loss((image, text), (image, text), queue, torch.eye(3, 8), torch.tensor(0.1), 0.4)
    assert torch.allclose(softer.image_targets.sum(1), torch.ones(3)) and not torch.equal(softer.loss, out.loss)


def test_the_temperature_stays_in_its_range() -> None:
    for value, kept in ((0.9, 0.5), (-1.0, 0.001), (0.2, 0.2)):
        temperature = torch.nn.Parameter(torch.tensor(value))
        clamp_temperature(temperature)
        assert temperature.item() == pytest.approx(kept)


@pytest.mark.parametrize("smoothing", [0.0, 1e-4])
def test_chances_of_negatives_are_the_published_ones_where_those_exist(smoothing: float) -> None:
    similarity, is_same = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 3, torch.zeros(4, 6).bool()
    is_same[range(4), range(4)] = True
    is_same[0, 5] = True
    published = (torch.softmax(similarity, 1) + smoothing).masked_fill(is_same, 0.0)
    found = negative_weights(similarity, is_same, smoothing)
    assert torch.allclose(found, published / published.sum(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 1e-4])
def test_a_row_never_underflows_to_zeros(smoothing: float) -> None:
    """The published rule leaves nothing to draw here: softmax gives the row's own picture everything."""
    similarity = torch.tensor([[1000.0, -1000.0, -1001.0], [0.0, 0.0, 0.0]])
    is_same = torch.tensor([[True, False, False], [True, True, True]])
    assert float(torch.softmax(similarity, 1).masked_fill(is_same, 0.0)[0].sum()) == 0.0
    weights = negative_weights(similarity, is_same, smoothing)
    assert bool(torch.isfinite(weights).all()) and weights[:, 0].tolist() == [0.0, 0.0]
    assert float(weights[0].sum()) == pytest.approx(1.0) and weights[1].tolist() == [0.0] * 3
    index, there = draw_negatives(weights)
    assert there.tolist() == [True, False] and int(index[0]) in (1, 2)


def test_draws_follow_the_chances_and_the_generator() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).expand(20000, 4)
    index, _ = draw_negatives(weights, torch.Generator().manual_seed(0))
    shares = torch.bincount(index, minlength=4) / 20000
    assert float((shares - weights[0]).abs().max()) < 0.015 and float(shares[3]) == 0.0
    again, _ = draw_negatives(weights, torch.Generator().manual_seed(0))
    assert torch.equal(index, again)


def test_pairs_without_a_negative_are_left_out() -> None:
    there = torch.tensor([True, False, True, True])
    assert matching_labels(there).tolist() == [1, 1, 0, -100, 0, 0]
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    kept = [0, 1, 2, 4, 5]
    expected = torch.nn.functional.cross_entropy(logits[kept], torch.tensor([1, 1, 0, 0, 0]))
    assert torch.allclose(matching_loss(logits, there), expected)
    assert bool(torch.isfinite(matching_loss(logits, there & False)))


def test_agreement_is_zero_for_symmetric_rankings_and_bounded() -> None:
    image = unit(5, 8)
    assert float(ranking_agreement(image, image, 0.1).abs().max()) < 1e-6
    far = ranking_agreement(image, unit(5, 8, seed=3), 0.01)
    assert bool((far > 0).all()) and float(far.max()) <= math.log(2) + 1e-6
    assert torch.allclose(ranking_agreement(image * 7, unit(5, 8, seed=3) * 2, 0.01), far, atol=1e-5)


def test_the_teachers_share_grows() -> None:
    assert [ramped(0.4, step, 4) for step in (0, 2, 4, 9)] == [0.0, 0.2, 0.4, 0.4] and ramped(0.4, 0, 0) == 0.4
