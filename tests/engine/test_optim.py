"""Optimizers against torch and against the written formula; groups; the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from toy_model import Toy, toy_groups

from mtvl.config import OptimConfig
from mtvl.errors import EngineError
from mtvl.optim import GROUP_KEY, ParameterGroup, build_optimizer, check_groups, learning_rate, parameter_groups

SHAPES = ((7, 3), (5,), (1,), (4, 2))


def tensors(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(shape, generator=generator) * 10.0 ** (i - 2) for i, shape in enumerate(SHAPES)]


def ours(params: Iterable[torch.nn.Parameter], config: OptimConfig):  # noqa: ANN201
    named = {f"p{i}": p for i, p in enumerate(params)}
    groups = [
        ParameterGroup("first", "a", True, ("p0", "p1")),
        ParameterGroup("empty", "a", True, ()),
        ParameterGroup("second", "b", False, ("p2", "p3")),
    ]
    optimizer = build_optimizer(named, groups, config)
    optimizer.allocate(named.values())
    return optimizer


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_equals_torch_bit_for_bit(name: str) -> None:
    config = OptimConfig(name=name, lr=0.1, weight_decay=0.1, eps=1e-6)
    mine, theirs = tensors(0), tensors(0)
    optimizer = ours(mine, config)
    groups = [{"params": theirs[:2], "weight_decay": 0.1}, {"params": theirs[2:], "weight_decay": 0.0}]
    reference = (
        torch.optim.AdamW(groups, lr=0.1, betas=config.betas, eps=config.eps)
        if name == "adamw"
        else torch.optim.SGD(groups, lr=0.1)
    )
    for step in range(12):
        lr = 0.1 / (1 + step)
        present = [step % 3 != 1, step % 3 != 2]  # groups come and go
        optimizer.begin([n for n, here in zip(("first", "second"), present, strict=True) if here], lr)
        for i, gradient in enumerate(gradients(step)):
            mine[i].grad = gradient.clone()  # a flat buffer holds something for absent groups too
            theirs[i].grad = gradient.clone() if present[i // 2] else None
        for group in reference.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.commit()
        reference.step()
        assert all(torch.equal(m, t) for m, t in zip(mine, theirs, strict=True)), step
    assert optimizer.counts == {"first": 8, "second": 8}


def test_reference_adamw_follows_its_formula() -> None:
    lr, beta1, beta2, eps, decay = 0.05, 0.8, 0.95, 1e-3, 0.1
    config = OptimConfig(name="adamw_reference", lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    params = tensors(1)
    optimizer = ours(params, config)
    expected = [p.detach().double().clone() for p in params]
    first = [torch.zeros_like(p) for p in expected]
    second = [torch.zeros_like(p) for p in expected]
    for step in range(1, 8):
        optimizer.begin(["first", "second"], lr)
        for i, gradient in enumerate(gradients(step)):
            params[i].grad = gradient.clone()
            g = gradient.double()
            first[i] = beta1 * first[i] + (1 - beta1) * g
            second[i] = beta2 * second[i] + (1 - beta2) * g * g
            rate = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
            expected[i] = expected[i] - rate * first[i] / (second[i].sqrt() + eps)
            if i < 2:
                expected[i] = expected[i] - lr * decay * expected[i]
        optimizer.step()
        optimizer.commit()
    for mine, wanted in zip(params, expected, strict=True):
        torch.testing.assert_close(mine.detach().double(), wanted, rtol=1e-6, atol=1e-6)
    plain = ours(tensors(1), OptimConfig(name="adamw", lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay))
    assert type(plain) is not type(optimizer)


@pytest.mark.parametrize("name", ["adamw", "adamw_reference", "sgd"])
def test_absent_and_cancelled_groups_stand_still(name: str) -> None:
    params = tensors(2)
    optimizer = ours(params, OptimConfig(name=name, weight_decay=0.5))

    def one(active: list[str], cancel: bool = False) -> None:
        optimizer.begin(active, 0.1)
        for parameter, gradient in zip(params, gradients(0), strict=True):
            parameter.grad = gradient
        if cancel:
            optimizer.cancel()
        optimizer.step()
        optimizer.commit()

    one(["first", "second"])
    before = [p.detach().clone() for p in params]
    moments = [v.clone() for p in params for v in optimizer.state[p].values()]
    one(["second"], cancel=True)
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    one(["second"])
    assert all(torch.equal(a, b) for a, b in zip(before[:2], params[:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before[2:], params[2:], strict=True))
    now = [v for p in params for v in optimizer.state[p].values()]
    half = len(now) // 2
    assert all(torch.equal(a, b) for a, b in zip(moments[:half], now[:half], strict=True))
    assert optimizer.counts == {"first": 1, "second": 2}


def test_first_gradients_are_noted() -> None:
    params = tensors(3)
    optimizer = ours(params, OptimConfig())
    optimizer.begin(["first", "second"], 0.1)
    for parameter in params:
        parameter.grad = torch.zeros_like(parameter)
    params[3].grad[1, 1] = 1e-30
    optimizer.step()
    assert optimizer.touched == {"second"}


def test_unknown_group_and_unknown_optimizer() -> None:
    with pytest.raises(EngineError, match="'adamw'"):
        ours(tensors(0), OptimConfig(name="adamv"))
    with pytest.raises(EngineError, match="did you mean 'first'"):
        ours(tensors(0), OptimConfig()).begin(["frist"], 0.1)


def test_groups_keep_their_name_through_torch() -> None:
    optimizer = ours(tensors(0), OptimConfig(weight_decay=0.3))
    assert [(g[GROUP_KEY], g["weight_decay"]) for g in optimizer.param_groups] == [("first", 0.3), ("second", 0.0)]


def broken(change: str) -> tuple[Toy, list[ParameterGroup]]:
    model = Toy()
    groups = toy_groups(model)
    first = groups[0]
    if change == "frozen":
        groups[0] = ParameterGroup(first.name, None, True, (*first.names, "layers.0.frozen.weight"))
    elif change == "unknown":
        groups[0] = ParameterGroup(first.name, None, True, (*first.names, "layers.9.weight"))
    elif change == "twice":
        groups[0] = ParameterGroup(first.name, None, True, (*first.names, groups[2].names[0]))
    elif change == "left out":
        groups = groups[1:]
    elif change == "one name":
        groups[0] = ParameterGroup(groups[1].name, None, True, first.names)
    elif change == "nothing":
        model.requires_grad_(False)
        groups = []
    return model, groups


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("frozen", "names the frozen parameter layers.0.frozen.weight"),
        ("unknown", "does not have: layers.9.weight"),
        ("twice", "is in two groups"),
        ("left out", "1 trainable parameters are in no group, the first is shared.weight"),
        ("one name", "one name"),
        ("nothing", "nothing to train"),
    ],
)
def test_groups_must_be_the_trainable_set(change: str, message: str) -> None:
    model, groups = broken(change)
    with pytest.raises(EngineError, match=message):
        check_groups(dict(model.named_parameters()), groups)


def test_right_groups_pass() -> None:
    model = Toy()
    check_groups(dict(model.named_parameters()), toy_groups(model))


def test_what_came_with_the_backbone_may_step_at_another_rate() -> None:
    named = {f"p{i}": p for i, p in enumerate(tensors(0))}
    owners = dict.fromkeys(named)
    plain = parameter_groups(named, owners, OptimConfig(), {"p0", "p1"})
    assert [(g.name, g.names) for g in plain] == [("shared/no_decay", ("p1", "p2")), ("shared/decay", ("p0", "p3"))]
    config = OptimConfig(name="sgd", lr=0.5, weight_decay=0.0, warmup_ratio=0.0, backbone_lr_scale=0.1)
    groups = parameter_groups(named, owners, config, {"p0", "p1"})
    assert {n: g.scale for g in groups for n in g.names} == {"p0": 1.0, "p1": 1.0, "p2": 0.1, "p3": 0.1}
    before = {n: p.detach().clone() for n, p in named.items()}
    optimizer = build_optimizer(named, groups, config)
    optimizer.allocate(named.values())
    for parameter, gradient in zip(named.values(), gradients(1), strict=True):
        parameter.grad = gradient
    optimizer.begin([g.name for g in groups], config.lr)
    optimizer.step()
    for (name, parameter), gradient in zip(named.items(), gradients(1), strict=True):
        rate = 0.5 if name in ("p0", "p1") else 0.5 * 0.1
        torch.testing.assert_close(parameter.detach(), before[name] - rate * gradient, rtol=1e-6, atol=1e-6)


def test_learning_rate() -> None:
    config = OptimConfig(lr=2.0, warmup_ratio=0.1, schedule="linear")
    rates = [learning_rate(step, config, 100) for step in range(101)]
    assert rates[0] == 0.0 and rates[5] == pytest.approx(1.0) and rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0) and rates[100] == 0.0
    assert max(rates) == 2.0 and rates.index(2.0) == 10
    constant = OptimConfig(lr=2.0, warmup_ratio=0.1, schedule="constant")
    assert [learning_rate(s, constant, 100) for s in (5, 10, 99)] == [1.0, 2.0, 2.0]
    cosine = OptimConfig(lr=2.0, warmup_ratio=0.1, schedule="cosine")
    falling = [learning_rate(s, cosine, 100) for s in (5, 10, 55, 100)]
    assert falling == pytest.approx([1.0, 2.0, 1.0, 0.0]) and learning_rate(30, cosine, 100) > 2 * 70 / 90
    assert learning_rate(0, OptimConfig(lr=2.0, warmup_ratio=0.0), 10) == 2.0
    assert learning_rate(0, OptimConfig(lr=2.0, warmup_ratio=0.1), 5) == 2.0  # half a step of warm-up is none


def test_learning_rate_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 8772 // 100, 87720 // 100)
    config = OptimConfig(lr=1e-3, warmup_ratio=0.1)
    for step in range(877):
        assert learning_rate(step, config, 877) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12, abs=0)
        optimizer.step()
        schedule.step()
