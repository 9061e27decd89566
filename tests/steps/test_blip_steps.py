"""Teacher, retrieval step, answers and re-ranking on a tiny BLIP."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtvl.backbones.blip import Blip, BlipBackbone, BlipConfig
from mtvl.backbones.blip.backbone import Memory
from mtvl.config import PairsConfig
from mtvl.errors import CheckpointError, ConfigError
from mtvl.model import Model, make_method
from mtvl.steps.answering import answer_step, caption_step, compare_step, rank_answers
from mtvl.steps.pairs import PairsLoss
from mtvl.steps.reranking import OUTSIDE, rerank
from mtvl.steps.retrieval import RetrievalOptions, RetrievalStep
from mtvl.steps.teacher import Teacher
from mtvl.types import Batch


def tiny(kind: str = "joint") -> BlipBackbone:
    model = BlipBackbone.build(BlipConfig(kind=kind, preset="tiny", image_size=32, embed_dim=12))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature.value":
                drawn = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_(drawn + ("norm" in name and parameter.dim() == 1))
    return model.eval()


def some_inputs(rows: int = 4, frames: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(rows, frames, 3, 32, 32, generator=generator)
    ids = torch.randint(4, 118, (rows, 6), generator=generator)
    ids[:, 0] = 2
    mask = torch.arange(6)[None] < torch.randint(3, 7, (rows, 1), generator=generator)
    return pixels, ids.masked_fill(~mask, 0), mask


def adapted(backbone: Blip, **petl: Any) -> Model:
    method = make_method({"name": "uniadapter", "bottleneck": 4, **petl})
    model = Model(backbone, method.plan(backbone.sites(), ("task",)), method)
    model.set_task("task")
    return model


def test_with_a_frozen_backbone_the_teacher_averages_what_is_trained() -> None:
    model = adapted(tiny())
    step = RetrievalStep(model.backbone, RetrievalOptions(queue_size=8))
    names = set(step.teacher.names)
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert names == {n for n in trained if not n.startswith("match.")} and names
    assert all(n.startswith(("common.adapter.", "contrast.")) for n in names)
    held = sum(b.numel() for b in step.teacher.buffers())
    assert (
        held
        == sum(model.backbone.get_parameter(n).numel() for n in names)
        < 0.2 * sum(p.numel() for p in model.parameters())
    )


@pytest.mark.parametrize("kind", ["pretrain", "joint"])
def test_the_teacher_is_the_model_with_its_averages_and_leaves_no_trace(kind: str) -> None:
    """Also where a module stands under two names, as in a decoder that is tied to the encoder."""
    model = tiny(kind)
    pixels, ids, mask = some_inputs()
    teacher = Teacher(model, momentum=0.9)
    plain = model.fuse(ids, mask, model.see(pixels)).detach()
    shifted = {n: a + 0.1 for n, a in teacher.averages().items()}
    teacher.assign(shifted)
    before = dict(model.named_parameters())
    taught = teacher.run(model, lambda: model.fuse(ids, mask, model.see(pixels)))
    assert all(p is before[n] for n, p in model.named_parameters())
    assert torch.equal(model.fuse(ids, mask, model.see(pixels)), plain) and not torch.equal(taught, plain)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(shifted[name])
    now = model.fuse(ids, mask, model.see(pixels))  # with gradients torch may take another kernel
    assert torch.allclose(now, taught, atol=1e-5)


def test_averages_move_by_the_momentum_and_are_checked() -> None:
    model = torch.nn.Linear(2, 2)
    teacher = Teacher(model, momentum=0.75)
    start = {n: t.clone() for n, t in teacher.averages().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    teacher.update(model)
    assert all(torch.allclose(a, start[n] + 0.25) for n, a in teacher.averages().items())
    with pytest.raises(CheckpointError, match="bias"):
        teacher.assign({"weight": torch.zeros(2, 2)})


def test_a_step_moves_queue_and_teacher_and_reaches_what_is_trained() -> None:
    model = adapted(tiny(), shared="down")
    step = RetrievalStep(model.backbone, RetrievalOptions(queue_size=6, agreement=1.0, agreement_temperature=0.1))
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if ".adapter." in name:
                parameter += 0.05
    batch, ids = some_inputs(frames=2), torch.tensor([5, 6, 5, 7])
    losses = step(model.backbone, *batch, ids, 0.4, generator=torch.Generator().manual_seed(0))
    assert step.queue.ids.tolist() == [5, 6, 5, 7, -100, -100] and int(step.queue.place) == 4
    assert torch.allclose(losses.total, losses.contrast + losses.matching + losses.agreement)
    losses.total.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.trainable().values())
    assert model.backbone.vision.blocks[0].attn.q.weight.grad is None
    assert not any(b.requires_grad for b in step.teacher.buffers())


def test_one_picture_or_one_row_has_no_negatives_and_no_crash() -> None:
    model = tiny("retrieval")
    step = RetrievalStep(model, RetrievalOptions(queue_size=4))
    for rows, ids in ((1, [3]), (3, [3, 3, 3])):
        losses = step(model, *some_inputs(rows), torch.tensor(ids), 0.0)
        positive = torch.nn.functional.cross_entropy(
            losses.details["logits"][:rows], torch.ones(rows, dtype=torch.long)
        )
        assert torch.allclose(losses.matching, positive) and bool(torch.isfinite(losses.total))


def pairs_of(rows: int, uids: tuple[str, ...]) -> Batch:
    """The first of three rows, of which the last shows the picture of the first: so the collator fills one that it cannot read."""
    pixels, ids, mask = some_inputs(3)
    pixels[2] = pixels[0]
    return Batch(
        "pairs", uids, ids[:rows], mask[:rows], pixels[:rows].flatten(3).transpose(2, 3), ids[:rows], torch.ones(rows),
        item_ids=torch.tensor([5, 6, 7][:rows]),
    )  # fmt: skip


@pytest.mark.parametrize("targets", ["ids", "diagonal"])
def test_a_row_whose_picture_could_not_be_read_is_no_pair(targets: str) -> None:
    """Two good rows have one negative each, so nothing is left to chance."""
    config = PairsConfig(queue_size=6, targets=targets, agreement=1.0, agreement_temperature=0.1, language=1.0)
    found = []
    for rows, uids in ((2, ("a", "b")), (3, ("a", "b", "")), (3, ("", "", ""))):
        model = tiny("pretrain")
        pairs = PairsLoss(model, config)
        pairs(model, pairs_of(rows, uids)).backward()
        pairs.count.zero_()
        loss = pairs(model, pairs_of(rows, uids))
        found.append((loss, {n: p.grad for n, p in model.named_parameters()}, pairs.step.queue.ids.tolist()))
    (without, gradients, _), (beside, same, queue), (nothing, none, empty) = found
    assert torch.allclose(beside, without, atol=1e-5)  # measured: equal
    assert all(torch.allclose(same[name], gradients[name], atol=1e-5) for name in gradients)  # 1.2e-6
    assert queue == [5, 6, -100, 5, 6, -100] and empty == [-100] * 6
    assert nothing == 0 and not any(g is not None and bool(g.any()) for g in none.values())


def test_drawn_negatives_are_never_of_the_same_picture() -> None:
    model = tiny("retrieval")
    step = RetrievalStep(model, RetrievalOptions(queue_size=4))
    pixels, text, mask = some_inputs()
    ids = torch.tensor([1, 1, 2, 1])
    own = step.look(model, pixels, text, mask, ids)
    out = step.losses(model, own, (own.image, own.text), own, 0.4)
    for weights in out.details["weights"]:
        assert not bool(weights[ids[:, None] == ids[None]].any()) and torch.allclose(weights.sum(1), torch.ones(4))


@pytest.mark.parametrize("rule", ["paper", "cosine", "as_coded"])
def test_frame_weights_change_matching_of_videos_alone(rule: str) -> None:
    model = tiny("retrieval")
    steps = [RetrievalStep(model, RetrievalOptions(queue_size=4, frame_weights=r)) for r in ("off", rule)]
    negatives = (torch.tensor([1, 2, 3, 0]), torch.tensor([3, 0, 1, 2]))
    for frames in (1, 3):
        own = steps[0].look(model, *some_inputs(frames=frames), torch.arange(4))
        plain, weighted = (s.losses(model, own, (own.image, own.text), own, 0.4, negatives) for s in steps)
        assert torch.equal(plain.contrast, weighted.contrast)
        assert torch.allclose(plain.matching, weighted.matching, atol=1e-7) == (frames == 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frame_weights": "papr"}, "did you mean 'paper'"),
        ({"targets": "id"}, "ids or diagonal"),
        ({"targets": "diagonal", "all_ranks": True}, "all_ranks"),
        ({"queue_size": 0}, "queue_size"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RetrievalOptions(**options)


@torch.no_grad()
def test_answers_are_ranked_as_one_by_one() -> None:
    model = tiny()
    pixels, ids, mask = some_inputs(3)
    states = model.fuse(ids, mask, model.see(pixels))
    answers = torch.tensor([[2, 9, 3, 0], [2, 9, 8, 3], [2, 30, 3, 0], [2, 31, 7, 3], [2, 40, 3, 0]])
    given = answers != 0
    listed = [row[there][1:].tolist() for row, there in zip(answers, given, strict=True)]
    memory = Memory(states, mask)
    index, scores, chances = rank_answers(model.decode, memory, listed, 3, chunk=2)
    assert index.shape == scores.shape == (3, 3) and chances.shape == (3, 5)
    for row in range(3):
        assert set(chances[row].topk(3).indices.tolist()) == set(index[row].tolist())
        for place, which in enumerate(index[row].tolist()):
            one, length = (states[row : row + 1], mask[row : row + 1]), int(given[which].sum())
            logits = model.decode_states(answers[which : which + 1, :length], given[which : which + 1, :length], *one)[
                0
            ]
            logp = torch.log_softmax(logits, -1)
            smooth = sum(0.9 * logp[t, answers[which, t + 1]] + 0.1 * logp[t].mean() for t in range(length - 1))
            assert float(scores[row, place]) == pytest.approx(float(smooth), abs=1e-4)
    everything, _, _ = rank_answers(model.decode, memory, listed, 99)
    assert everything.shape == (3, 5)
    begun = [[9, *answer] for answer in listed]  # all begin alike: the place behind tells them apart
    _, _, later = rank_answers(model.decode, memory, begun, 3)
    after = torch.softmax(model.decode(memory, torch.tensor([[9, 5]] * 3))[:, 1], 1)
    assert torch.allclose(later, after[:, [answer[0] for answer in listed]], atol=1e-6)
    _, _, equal = rank_answers(model.decode, memory, begun, 3, pass_common=False)
    assert torch.equal(equal, equal[:, :1].expand_as(equal))  # by the place that all share


def test_answers_weigh_and_repeat_their_questions() -> None:
    model = tiny()
    pixels, ids, mask = some_inputs(2)
    answers = torch.tensor([[2, 9, 3, 0], [2, 9, 8, 3], [2, 30, 3, 0]])
    weights, per = torch.tensor([0.3, 0.7, 1.0]), torch.tensor([2, 1])
    out = answer_step(model, pixels, (ids, mask), (answers, answers != 0), weights, per)
    alone = answer_step(model, pixels[1:], (ids[1:], mask[1:]), (answers[2:], answers[2:] != 0), weights[2:], per[1:])
    assert torch.allclose(out.details["losses"][2:], alone.details["losses"], atol=1e-5)
    assert torch.allclose(out.loss, (out.details["losses"] * weights).sum() / 2)


def test_a_caption_loss_and_a_comparison() -> None:
    pixels, ids, mask = some_inputs(3, frames=2)
    caption = caption_step(tiny("caption"), pixels[:, :1], ids, mask, 2)
    assert caption.details["labels"][:, :2].tolist() == [[-100, -100]] * 3 and bool(torch.isfinite(caption.loss))
    model = tiny("nlvr2")
    out = compare_step(model, pixels, ids, mask, torch.tensor([1, 0, 1]))
    turned = compare_step(model, pixels.flip(1), ids, mask, torch.tensor([1, 0, 1]))
    assert out.logits.shape == (3, 2) and not torch.allclose(out.logits, turned.logits)
    with pytest.raises(ValueError, match="two pictures"):
        compare_step(model, pixels[:, :1], ids, mask, torch.tensor([1, 0, 1]))


@torch.no_grad()
@pytest.mark.parametrize("by_text", [False, True])
def test_reranking_in_chunks_is_the_dense_one_and_asks_for_few_pictures(by_text: bool) -> None:
    model = tiny("retrieval")
    pixels, ids, mask = some_inputs(5)
    tokens = model.see(pixels[:4])
    similarity = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    asked: list[int] = []

    def tokens_of(which: torch.Tensor) -> torch.Tensor:
        asked.append(len(which))
        return tokens[which]

    found = rerank(model, tokens_of, (ids, mask), similarity, 2, by_text=by_text, chunk=3)
    assert max(asked) <= 3
    dense = torch.stack(
        [model.match(model.fuse(ids, mask, tokens[i : i + 1].expand(5, -1, -1, -1))[:, 0])[:, 1] for i in range(4)]
    )
    dense, queries = (dense + similarity), similarity
    if by_text:
        dense, queries = dense.T, queries.T
    inside = torch.zeros_like(dense, dtype=torch.bool).scatter(1, queries.topk(2, 1).indices, True)
    assert torch.allclose(found[inside], dense[inside], atol=1e-5)
    assert found[~inside].unique().tolist() == [OUTSIDE]


@pytest.mark.parametrize("frozen", [["visual"], []])
def test_a_teacher_of_texts_alone_sees_what_the_model_sees(frozen: list[str]) -> None:
    """Where nothing is averaged that image tokens hang on they are made once a step, and the teacher gives the same bits."""
    model = tiny()
    method = make_method({"name": "full", "frozen": frozen})
    Model(model, method.plan(model.sites(), ("task",)), method)
    step = RetrievalStep(model, RetrievalOptions(queue_size=8))
    step.teacher.assign({n: a + 0.01 for n, a in step.teacher.averages().items()})
    assert step.sees_alike(model) == bool(frozen)
    seen, see = [], model.see
    model.see = lambda pixels: seen.append(1) or see(pixels)  # type: ignore[method-assign]
    inputs = some_inputs()
    taught = step.teach(model, *inputs, tokens=see(inputs[0]))
    assert len(seen) == (0 if frozen else 1)
    assert all(torch.equal(a, b) for a, b in zip(taught, step.teach(model, *inputs), strict=True))
