"""Checker of the family "unitrans": the equations of VCRA, QASN and MCAM, computed with this project's modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch

from mtvl.backbones.blip.layers import Attention
from mtvl.objectives.contrast import ranking_agreement, rankings
from mtvl.petl.apply import AdaptedLinear
from mtvl.petl.plan import Part
from mtvl.petl.share import ActiveTask, TaskBank
from mtvl.petl.vcra import Matrix, QuerySide, SharedChange, UniTransConfig, Vectors, change_matrix, held
from mtvl.sites import BlockStates
from parity.report import Case, Report, Tolerance, check_kind

EQUATION = Tolerance(atol=1e-6, rtol=1e-6)  # recorded in float32
GRAD = Tolerance(atol=1e-5, rtol=1e-6)
SETS = {"V": "visual", "T": "text", "C": "fusion"}


def check(case: Case, report: Report) -> None:
    """Compare every quantity that the case records."""
    check_kind(case, report, {
        "paper_vcra": check_vcra, "paper_qasn": check_qasn, "paper_mcam": check_mcam,
    })  # fmt: skip


def bank(make: Callable[[Part], torch.nn.Module]) -> TaskBank:
    """What a shared part holds, in double precision."""
    return TaskBank((Part("part", "shared", ()),), ActiveTask(("task",)), make).double()


def make_pair(state: Mapping[str, torch.Tensor]) -> tuple[TaskBank, TaskBank]:
    """Matrices A and B."""
    pair = []
    for key in ("A", "B"):
        matrix = bank(lambda part, key=key: Matrix(*state[key].shape))  # type: ignore[misc]
        with torch.no_grad():
            matrix.current().weight.copy_(state[key])  # type: ignore[union-attr, operator]
        pair.append(matrix)
    return pair[0], pair[1]


def make_vectors(tensors: Mapping[str, torch.Tensor]) -> tuple[TaskBank]:
    """Vectors by their names at `Vectors`."""
    shapes = tuple((n, tuple(t.shape)) for n, t in tensors.items())
    found = bank(lambda part: Vectors(shapes))
    with torch.no_grad():
        for name, tensor in tensors.items():
            found.current().get_parameter(name).copy_(tensor)
    return (found,)


def make_attention(state: Mapping[str, torch.Tensor], prefix: str, width: int, heads: int) -> Attention:
    """Attention with weights that are stored as [in, out]."""
    attention = Attention(width, heads).double()
    with torch.no_grad():
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
            attention.get_submodule(ours).weight.copy_(state[f"{prefix}.{theirs}.W"].T)
            attention.get_submodule(ours).bias.copy_(state[f"{prefix}.{theirs}.b"])
    return attention


def close(case: Case, report: Report, name: str, found: torch.Tensor, tolerance: Tolerance = EQUATION) -> None:
    """One recorded result."""
    expected = case.get(f"expect/{name}")
    if expected is None:
        raise ValueError(f"nothing is recorded for {name}")
    report.close(name, found, expected, tolerance)


def check_vcra(case: Case, report: Report) -> None:
    """Eq. 4 on queries, keys and values of three modalities, the change as a matrix, merged weights, gradients."""
    dims, state = case.facts["dims"], {k: v.double() for k, v in case.under("state/").items()}
    inputs = {k: v.double() for k, v in case.under("input/").items()}
    pair, attention = make_pair(state), make_attention(state, "att", dims["d"], dims["heads"])
    scale = state["s"].reshape(1)
    vectors = {
        which: {name: make_vectors({"a": state[f"a_{m}_{which}"], "b": state[f"b_{m}_{which}"], "scale": scale})
                for m, name in SETS.items()}
        for which in ("q", "kv")
    }  # fmt: skip
    changes = {}
    for projection in ("q", "k", "v"):
        change = SharedChange(pair, vectors["q" if projection == "q" else "kv"], 1.0)
        wrapped = AdaptedLinear.wrap(attention.get_submodule(projection), change, ActiveTask(("shared",)))  # type: ignore[arg-type]
        setattr(attention, projection, wrapped)
        changes[projection] = change
    report.equal("parameters of the pair", sum(p.numel() for m in pair for p in m.parameters()),
                 case.facts["theta"]["shared_pair"])  # fmt: skip
    for m, name in SETS.items():
        for change in changes.values():
            change.modality = name
        query = attention.q
        close(case, report, f"eq4_q_{m}", query(inputs[f"x_{m}"]))
        weight, _ = changes["q"].fold(query.weight, None)
        close(case, report, f"merged_q_weight_out_in_{m}", weight)
        close(case, report, f"delta_weight_q_{m}", weight - query.weight)
        if m != "C":
            close(case, report, f"self_attention_{m}", attention(inputs[f"x_{m}"]))
    out = attention(inputs["x_C"], inputs["f_v"])  # the vectors of fusion are still on
    close(case, report, "cross_attention_C", out)
    (out * inputs["grad_out"]).sum().backward()
    found = {"A": _grad(pair[0], "weight"), "B": _grad(pair[1], "weight"), "s": torch.zeros(1, dtype=out.dtype)}
    for which in ("q", "kv"):
        for letter in ("a", "b"):
            found[f"{letter}_C_{which}"] = _grad(vectors[which]["fusion"][0], letter)
        found["s"] = found["s"] + _grad(vectors[which]["fusion"][0], "scale")
    found["s"] = found["s"].reshape(())
    report.tensors("gradients", found, case.under("expect/grad_cross_attention_C/"), GRAD)


def _grad(holder: TaskBank, name: str) -> torch.Tensor:
    gradient = holder.current().get_parameter(name).grad
    if gradient is None:
        raise ValueError(f"no gradient reached {name}")
    return gradient


def check_qasn(case: Case, report: Report) -> None:
    """Eq. 5 and 6 over toy blocks, in all recorded readings."""
    dims, state = case.facts["dims"], {k: v.double() for k, v in case.under("state/").items()}
    inputs = {k: v.double() for k, v in case.under("input/").items()}
    pair = make_pair(state)
    count = sum(re.fullmatch(r"block\d+\.q\.W", name) is not None for name in state)
    blocks = [make_attention(state, f"block{i}", dims["d"], dims["heads"]) for i in range(count)]
    down, up = (matrix.current()() for matrix in pair)
    readings = {key.removeprefix("expect/").rpartition("/")[0] for key in case.tensors if "/h_1" in key}
    plain = UniTransConfig(rank=dims["r"])
    for reading in sorted(readings):
        activation, start, orientation = reading.split("/")
        config = replace(plain, activation=activation, side=start.removeprefix("h0_"),
                         orientation={"x_w": "literal", "x_wT": "as_attention"}[orientation])  # fmt: skip
        x, side = inputs["x_T"], None
        for i, block in enumerate(blocks):
            own = make_vectors({name: state[f"{name}_{i}"] for name in ("a", "b", "alpha", "beta")})
            output = x + block(x, inputs["x_V"])
            x, side = QuerySide(pair, own, config)(BlockStates(x, x, output, output, side))
            close(case, report, f"{reading}/h_{i + 1}", side)
            close(case, report, f"{reading}/x_{i + 1}", x)
    first = make_vectors({name: state[f"{name}_0"] for name in ("a", "b")})
    close(case, report, "w_0", change_matrix(held(first), down, up, 1.0))


def check_mcam(case: Case, report: Report) -> None:
    """Eq. 7 to 10 at all recorded temperatures, and gradients of Eq. 9."""
    inputs = {k: v.double().requires_grad_(True) for k, v in case.under("input/").items()}
    image, text = inputs["image_feat"], inputs["text_feat"]
    unit = partial(torch.nn.functional.normalize, dim=1)
    close(case, report, "similarity", unit(image) @ unit(text).T)
    for tau in sorted({key.split("/")[1] for key in case.tensors if key.startswith("expect/tau")}):
        value = float(tau.removeprefix("tau"))
        first, second = rankings(image, text, value)
        rows = ranking_agreement(image, text, value)
        contrast = -(first.diagonal().sum() + second.diagonal().sum())
        for name, found in (("P", first.exp()), ("Q", second.exp()), ("js_per_row", rows)):
            close(case, report, f"{tau}/{name}", found)
        for name, found in (("loss_itr_sum_eq9", rows.sum()), ("loss_itr_mean", rows.mean()),
                            ("loss_itc_sum_eq7", contrast), ("loss_all_eq10", contrast + rows.sum())):  # fmt: skip
            close(case, report, f"{tau}/{name}", found, EQUATION)
        grads = torch.autograd.grad(rows.sum(), (image, text), retain_graph=True)
        found_grads = dict(zip(("image_feat", "text_feat"), grads, strict=True))
        report.tensors(f"{tau}/gradients", found_grads, case.under(f"expect/{tau}/grad_itr_sum/"), GRAD)
