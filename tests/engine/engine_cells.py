"""Checks that need ranks: runs all cells of one world size in one launch and writes what it measured as JSON.

A cell is a function of the stage that returns plain numbers; test_engine.py asserts on them.
The cells of one rank load what two ranks have saved, so two come first.
Usage (started by tests/distributed.py): engine_cells.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero import GatheredParameters
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_model import TASKS, Toy, part_of, split, toy_groups, toy_slot

from mtvl import dist
from mtvl.agreement import check_ranks
from mtvl.config import EngineConfig, MixtureConfig, OptimConfig, RunConfig, TrainConfig
from mtvl.data.rows import without_rows
from mtvl.data.schedule import Slot, num_micro_steps, slice_slot
from mtvl.engine import Engine, finish
from mtvl.errors import CheckpointError, EngineError
from mtvl.types import Batch

STAGES = ("zero0", "zero1", "zero2", "zero3")
ROWS, STEPS = 12, 7
FOLDER = Path(sys.argv[1])


def make_config(
    stage: str, optimizer: str = "adamw", slots: int = 1, clip: float = 0.5, lr: float = 0.02, steps: int = 12
) -> RunConfig:
    """Run configuration of a toy; `stage` is a file name in ds_configs, or an absolute path."""
    file = stage if stage.endswith(".json") else f"ds_configs/{stage}.json"
    return RunConfig(
        tasks=TASKS,
        mixture=MixtureConfig(slots=slots),
        train=TrainConfig(
            steps=steps, global_batch=ROWS, micro_batch=ROWS, precision="bf16" if "bf16" in stage else "fp32"
        ),
        optim=OptimConfig(
            name=optimizer, lr=lr, weight_decay=0.1, warmup_ratio=0.0, schedule="constant", clip_norm=clip
        ),
        engine=EngineConfig(file),
    )


def make_engine(config: RunConfig, micro_per_slot: int = 1, **toy: Any) -> Engine:
    """Engine over a fresh toy."""
    model = Toy(**toy)
    return Engine(model, toy_groups(model), config, config.mixture.slots * micro_per_slot)


def slots_of(step: int, slots: int) -> list[Batch]:
    """Slots of a step: tasks change from slot to slot and from step to step; some steps have a task twice."""
    order = "aabcacbbacbaabbccabcbacab"
    weights = {"a": 1.0, "b": 0.5, "c": 2.0}
    tasks = [order[(step * slots + i) % len(order)] for i in range(slots)]
    return [toy_slot(100 * step + i, t, ROWS, slots, weights[t]) for i, t in enumerate(tasks)]


def reference(config: RunConfig, steps: int, **toy: Any) -> tuple[dict[str, torch.Tensor], list[float], list[float]]:
    """The same training in plain PyTorch on one process: whole slots, gradients None for absent tasks."""
    model = Toy(**toy)
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[n] for n in g.names], "weight_decay": config.optim.weight_decay if g.decay else 0.0}
        for g in toy_groups(model)
    ]
    if config.optim.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=config.optim.lr)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas, eps=config.optim.eps)
    trained = [p for p in model.parameters() if p.requires_grad]
    losses, norms = [], []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for slot in slots_of(step, config.mixture.slots):
            model.set_task(slot.task)
            loss = model(slot)
            loss.backward()
            total += float(loss.detach())
        limit = config.optim.clip_norm or float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, limit)))
        losses.append(total)
        optimizer.step()
    return {n: p.detach().clone() for n, p in parameters.items() if p.requires_grad}, losses, norms


def snapshot(engine: Engine) -> dict[str, torch.Tensor]:
    """Masters and moments of every trained parameter, with the step counts of the groups."""
    masters = engine.masters
    states = (None, *engine.optimizer.state_names)
    result = {f"{s or 'weight'}/{n}": masters.get(n, s) for s in states for n in masters.parameters}
    result.update({f"count/{k}": torch.tensor(v) for k, v in engine.optimizer.counts.items()})
    return result


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    """Names of entries that are not bit for bit the same."""
    return [k for k in before if not torch.equal(before[k], after[k])]


def frozen_hash(engine: Engine) -> str:
    """Hash of all frozen tensors, gathered where they are partitioned."""
    digest = hashlib.sha256()
    for _, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            with GatheredParameters([parameter], enabled=engine.zero_stage == 3):
                digest.update(parameter.detach().float().numpy().tobytes())
    return digest.hexdigest()


def run(engine: Engine, steps: range, micro_per_slot: int = 1) -> list[Any]:
    """Train on this rank's parts of the steps."""
    slots = engine.config.mixture.slots
    return [
        engine.train_step(s, split(slots_of(s, slots), dist.rank(), dist.world_size(), micro_per_slot)) for s in steps
    ]


def parity(stage: str, optimizer: str, slots: int, micro_per_slot: int, clip: float, **toy: Any) -> dict[str, Any]:
    """Largest differences from plain PyTorch in parameters, losses and gradient norms after seven steps."""
    config = make_config(stage, optimizer, slots, clip, lr=0.05 if optimizer == "sgd" else 0.02)
    engine = make_engine(config, micro_per_slot, **toy)
    start = frozen_hash(engine)
    reports = run(engine, range(STEPS), micro_per_slot)
    state = {n: engine.masters.get(n) for n in engine.masters.parameters}
    expected, losses, norms = reference(config, STEPS)
    return {
        "parameters": max(float((state[n] - expected[n]).abs().max()) for n in expected),
        "loss": max(abs(r.loss - x) for r, x in zip(reports, losses, strict=True)),
        "norm": max(abs(r.grad_norm - x) / x for r, x in zip(reports, norms, strict=True)),
        "moved": max(float((state[n] - p.detach()).abs().max()) for n, p in Toy().named_parameters() if n in state),
        "frozen_same": start == frozen_hash(engine),
        "rows": [dict(r.num_examples) for r in reports],
    }


def one_step(config: RunConfig, batches: list[Batch]) -> tuple[dict[str, torch.Tensor], Any]:
    """Gradients of one step by the engine, read off a step of SGD at rate 1, and the step's report."""
    model = Toy()
    config = replace(config, optim=replace(config.optim, name="sgd", lr=1.0, weight_decay=0.0, clip_norm=0.0))
    engine = Engine(model, toy_groups(model), config, len(batches))
    before = {n: engine.masters.get(n) for n in engine.masters.parameters}
    report = engine.train_step(0, batches)
    return {n: before[n] - engine.masters.get(n) for n in before}, report


def gradients(slot: Batch, pictures: int | None = None) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients and loss of a whole slot in plain PyTorch; of its pictures only the first `pictures` send gradients."""
    model = Toy()
    model.set_task(slot.task)
    trunk, calls = model.trunk, 0

    def some(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return trunk(x) if pictures is None or calls <= pictures else trunk(x).detach()

    model.trunk = some  # type: ignore[method-assign]
    loss = model(slot)
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, float(loss.detach())


def summed(parts: list[dict[str, torch.Tensor]], names: Any) -> dict[str, torch.Tensor]:
    """The sum of several sets of gradients; zeros for a parameter that is in none."""
    start = dict(Toy().named_parameters())
    return {n: sum((part[n] for part in parts if n in part), torch.zeros_like(start[n])) for n in names}


def together(stage: str) -> dict[str, Any]:
    """One step of all tasks, of which two have fewer rows than there are pieces: against each task by itself."""
    config = replace(make_config(stage, slots=3), train=TrainConfig(steps=1, global_batch=ROWS, micro_batch=3))
    slots = [toy_slot(900 + i, t, rows, 3, w) for i, (t, rows, w) in enumerate((("a", 1, 1.0), ("b", 12, 0.5), ("c", 3, 2.0)))]  # fmt: skip
    num_micro = num_micro_steps(ROWS, 3, dist.world_size())
    batches, fillers = [], 0
    for slot in slots:
        rows = tuple(range(len(slot.uids)))
        for micro in range(num_micro):
            piece = slice_slot(Slot(slot.task, rows, rows), dist.rank(), dist.world_size(), micro, num_micro)
            batch = part_of(slot, piece.ids[0], piece.ids[-1] + 1)
            batches.append(without_rows(batch, [0]) if piece.is_filler else batch)
            fillers += piece.is_filler
    found, report = one_step(config, batches)
    alone = [gradients(slot) for slot in slots]
    expected = summed([grads for grads, _ in alone], found)
    own_rows = [sum(bool(u) for b in batches if b.task == "a" for u in b.uids)]
    return {
        "loss": abs(report.loss - sum(loss for _, loss in alone)),
        "gradient": max(float((found[n] - expected[n]).abs().max()) for n in found),
        "smallest": min(float(g.abs().max()) for g in expected.values()),
        "rows": dict(report.num_examples),
        "rows_of_a": dist.gather_objects(own_rows[0]),
        "fillers": dist.gather_objects(fillers),
    }


def twice(stage: str) -> dict[str, Any]:
    """Gradients of steps in which every adapter runs twice, relative to their size; and of half of the calls."""
    config = make_config(stage, slots=2)
    slots = [toy_slot(700 + i, "c", ROWS, 2, 1.0) for i in range(2)]
    found, _ = one_step(config, split(slots, dist.rank(), dist.world_size(), 1))
    whole = summed([gradients(slot)[0] for slot in slots], found)
    half = summed([gradients(slot, pictures=1)[0] for slot in slots], found)
    private = [n for n in found if ".adapters.c." in n]
    norm = lambda x: float(x.norm())  # noqa: E731
    return {
        "worst": max(norm(found[n] - whole[n]) / norm(whole[n]) for n in private),
        "half": min(norm(half[n] - whole[n]) / norm(whole[n]) for n in private),
        "others": max(norm(found[n]) for n in found if ".adapters.a." in n or ".adapters.b." in n),
        "tensors": len(private),
    }


def idle(stage: str, optimizer: str) -> dict[str, Any]:
    """What moves in steps of other tasks after a task has been trained."""
    engine = make_engine(make_config(stage, optimizer, clip=0.0))

    def train(step: int, task: str) -> None:
        engine.train_step(step, split([toy_slot(step, task, ROWS)], dist.rank(), dist.world_size(), 1))

    for step, task in enumerate("abca"):
        train(step, task)
    before = snapshot(engine)
    train(4, "b")
    middle = snapshot(engine)
    train(5, "c")
    after = snapshot(engine)
    of = lambda names, tasks: [n for n in names if any(f"adapters.{t}." in n or f"/{t}/" in n for t in tasks)]  # noqa: E731
    return {
        "idle_changed": of(changed(before, middle), "ac") + of(changed(middle, after), "ab"),
        "active_changed": len(of(changed(before, middle), "b")) + len(of(changed(middle, after), "c")),
        "shared_changed": sum("shared." in n for n in changed(before, middle)),
    }


def not_finite(stage: str) -> dict[str, Any]:
    """A NaN loss, then an infinite gradient, on the last rank only."""
    engine = make_engine(make_config(stage, slots=2))
    last = dist.rank() == dist.world_size() - 1
    run(engine, range(3))
    before = snapshot(engine)
    parts = split(slots_of(3, 2), dist.rank(), dist.world_size(), 1)
    if last:
        parts[0].features = parts[0].features * float("nan")
    first = engine.train_step(3, parts)
    blamed = set(first.suspects) == set(dist.gather_objects(parts[0].uids)[-1])
    after_nan = snapshot(engine)
    engine.module.broken_gradient = last
    second = run(engine, range(4, 5))[0]
    engine.module.broken_gradient = False
    after_inf = snapshot(engine)
    good = run(engine, range(3, STEPS))
    state = {n: engine.masters.get(n) for n in engine.masters.parameters}
    expected, _, _ = reference(engine.config, STEPS)
    message = ""
    try:
        for step in range(STEPS, STEPS + 12):
            parts = split(slots_of(step, 2), dist.rank(), dist.world_size(), 1)
            parts[1].target_weights = parts[1].target_weights * (float("nan") if last else 1.0)
            engine.train_step(step, parts)
    except EngineError as error:
        message = str(error)
    return {
        "skipped": [first.skipped, second.skipped, any(r.skipped for r in good)],
        "changed": changed(before, after_nan) + changed(before, after_inf),
        "parameters": max(float((state[n] - expected[n]).abs().max()) for n in expected),
        "count": engine.skipped_steps,
        "message": message,
        "blamed": blamed and len(second.suspects) == sum(second.num_examples.values()),
    }


def disagreement(stage: str) -> dict[str, Any]:
    """Ranks with different tasks, then with different steps."""
    engine = make_engine(make_config(stage))
    before, messages, started = snapshot(engine), [], time.monotonic()
    for step, task in ((0, TASKS[dist.rank()]), (dist.rank(), "a")):
        try:
            engine.train_step(step, split([toy_slot(1, task, ROWS)], dist.rank(), dist.world_size(), 1))
        except EngineError as error:
            messages.append(str(error))
    return {
        "messages": messages,
        "seconds": time.monotonic() - started,
        "changed": changed(before, snapshot(engine)),
    }


def different_recipes() -> dict[str, Any]:
    """What ranks say that were given other tasks, then other sizes of the method, then other folders; and how soon."""
    config, messages, started = make_config("zero2"), [], time.monotonic()
    tasks = replace(config, tasks=("a", ("b", "c")[dist.rank() % 2]))
    petl = replace(config, petl={"name": "adapter", "bottleneck": 4 + dist.rank()})
    folder = replace(config, data=replace(config.data, cache=f"/rank{dist.rank()}"))
    for given in (tasks, petl, folder):
        try:
            check_ranks(given)
        except EngineError as error:
            messages.append(str(error))
    return {"messages": messages, "seconds": time.monotonic() - started}


def dead_task(stage: str, dead: str = "b", **toy: Any) -> dict[str, Any]:
    """A task whose own parameters silently drop out of the graph, and zero-started adapters, which must pass."""
    engine = make_engine(make_config(stage), zero=True, **toy)
    engine.module.dead_task = dead
    try:
        run(engine, range(16))
    except EngineError as error:
        return {"message": str(error)}
    return {"message": ""}


def saved_names(folder: Path) -> list[str]:
    """Entries of a saved state."""
    with safe_open(str(folder / "engine.safetensors"), framework="pt") as file:
        return list(file.keys())


def resume(stage: str) -> dict[str, Any]:
    """Five and five steps against ten, with dropout and accumulation; the state goes through files."""
    config = make_config(stage, slots=2)
    straight = make_engine(config, 2, dropout=0.3)
    torch.manual_seed(50 + dist.rank())
    run(straight, range(5), 2)
    folder = FOLDER / f"resume_{stage}_{dist.world_size()}"
    folder.mkdir(exist_ok=True)
    dist.barrier()
    straight.save(folder)
    dist.barrier()
    copies = straight.snapshot()
    expected = [r.loss for r in run(straight, range(5, 10), 2)]
    late = FOLDER / f"late_{stage}_{dist.world_size()}_{dist.rank()}"
    late.mkdir()
    copies.write(late)  # training has gone on
    again = make_engine(config, 2, dropout=0.3, noise=1.0)
    torch.manual_seed(7)
    again.load(folder)
    losses = [r.loss for r in run(again, range(5, 10), 2)]
    return {
        "changed": changed(snapshot(straight), snapshot(again)),
        "losses_equal": losses == expected,
        "late_equal": {p.name: p.read_bytes() for p in late.iterdir()}
        == {p.name: p.read_bytes() for p in folder.iterdir() if dist.is_main()},
        "bytes": sum(p.stat().st_size for p in folder.iterdir()),
        "trainable": straight.num_trainable,
        "tensor_bytes": (folder / "engine.safetensors").stat().st_size,
        "frozen_saved": [n for n in saved_names(folder) if n.split("/", 1)[1] not in straight.masters.parameters],
    }


def loss_scale(stage: str) -> dict[str, Any]:
    """What fp16 has found out about its scale, which needs no GPU to be saved and loaded."""
    engines = [make_engine(make_config(stage)) for _ in range(2)]
    for engine in engines:
        engine.masters.zero.loss_scaler = DynamicLossScaler(2.0**14, 1000, 1, 2, False)
    for overflow in (False, True, True, False):
        engines[0].masters.zero.loss_scaler.update_scale(overflow)
    folder = FOLDER / f"loss_scale_{stage}"
    folder.mkdir()
    engines[0].save(folder)
    engines[1].load(folder)
    found = [vars(engine.masters.zero.loss_scaler) for engine in engines]
    saved, loaded = ({k: v for k, v in state.items() if isinstance(v, (int, float))} for state in found)
    return {"saved": saved, "loaded": loaded}


def elsewhere(stage: str, folder: Path) -> dict[str, Any]:
    """A state of another stage and number of ranks is loaded and saved again: the same tensors."""
    engine = make_engine(make_config(stage, slots=2), 2, dropout=0.3, noise=1.0)
    engine.load(folder)
    copy = FOLDER / f"copy_{stage}_{dist.world_size()}"
    copy.mkdir(exist_ok=True)
    dist.barrier()
    engine.save(copy)
    dist.barrier()
    digests = [hashlib.sha256((f / "engine.safetensors").read_bytes()).hexdigest() for f in (folder, copy)]
    # The model's own weights must follow the masters: one evaluation tells.
    with torch.no_grad():
        engine.module.eval()
        engine.module.set_task("a")
        value = float(engine.deepspeed(toy_slot(3, "a", ROWS)))
    return {"same_tensors": digests[0] == digests[1], "loss": value}


def foreign(stage: str) -> dict[str, Any]:
    """States of other models, changed in one item each."""
    engine = make_engine(make_config(stage))
    good = FOLDER / "foreign"
    good.mkdir()
    engine.save(good)
    tensors = load_file(good / "engine.safetensors")
    facts = json.loads((good / "engine.json").read_text())
    group = {**facts["groups"][2], "decay": not facts["groups"][2]["decay"]}
    changes: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "missing": ({k: v for k, v in tensors.items() if k != "exp_avg/shared.bias"}, json.dumps(facts)),
        "shape": ({**tensors, "weight/shared.bias": torch.zeros(4)}, json.dumps(facts)),
        "additional": ({**tensors, "weight/trunk": torch.zeros(2)}, json.dumps(facts)),
        "group": (tensors, json.dumps({**facts, "groups": [*facts["groups"][:2], group, *facts["groups"][3:]]})),
        "optimizer": (tensors, json.dumps({**facts, "optimizer": "SGD"})),
        "format": (tensors, json.dumps({**facts, "format": 0})),
        "broken": (tensors, "{"),
    }
    run(engine, range(2))
    before, messages = snapshot(engine), {}
    for name, (content, text) in changes.items():
        folder = FOLDER / f"foreign_{name}"
        folder.mkdir()
        save_file(content, folder / "engine.safetensors")
        (folder / "engine.json").write_text(text)
        try:
            engine.load(folder)
        except CheckpointError as error:
            messages[name] = str(error)
    return {"messages": messages, "changed": changed(before, snapshot(engine))}


def low_precision(stage: str) -> dict[str, Any]:
    """bf16 weights with fp32 masters against the fp32 reference, and idle tasks in bf16."""
    engine = make_engine(make_config(stage, slots=3))
    reports = run(engine, range(STEPS))
    _, losses, _ = reference(engine.config, STEPS)
    return {
        "loss": max(abs(r.loss - x) / x for r, x in zip(reports, losses, strict=True)),
        "idle": idle(stage, "adamw"),
        "losses": [r.loss for r in reports],
    }


def offload(stage: int) -> str:
    """Engine file with the optimizer offloaded to the CPU."""
    file = FOLDER / f"offload{stage}_{dist.rank()}.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}}))
    return str(file)


def cells() -> dict[str, Callable[[], dict[str, Any]]]:
    """All cells of this world size by name."""
    table: dict[str, Callable[[], dict[str, Any]]] = {}
    several = dist.world_size() > 1
    for stage in STAGES:
        for optimizer, clip, slots, micro in (("sgd", 0.0, 1, 1), ("sgd", 0.0, 3, 1), ("adamw", 0.5, 1, 3)):
            name = f"parity {stage} {optimizer} slots={slots} micro={micro}"
            table[name] = lambda s=stage, o=optimizer, c=clip, k=slots, m=micro: parity(s, o, k, m, c)
        table[f"resume {stage}"] = lambda s=stage: resume(s)
        if several:
            table[f"together {stage}"] = lambda s=stage: together(s)
            table[f"twice {stage}"] = lambda s=stage: twice(s)
            table[f"idle {stage} adamw"] = lambda s=stage: idle(s, "adamw")
            table[f"not_finite {stage}"] = lambda s=stage: not_finite(s)
            table[f"disagreement {stage}"] = lambda s=stage: disagreement(s)
        else:  # what does not depend on the number of ranks is cheaper here
            table[f"idle {stage} sgd"] = lambda s=stage: idle(s, "sgd")
            table[f"parity {stage} recompute"] = lambda s=stage: parity(s, "adamw", 3, 1, 0.5, recompute=True)
            table[f"dead_task {stage}"] = lambda s=stage: dead_task(s)
            table[f"reentrant {stage}"] = lambda s=stage: dead_task(s, dead="", recompute=True, reentrant=True)
            saved = FOLDER / f"resume_{STAGES[(STAGES.index(stage) + 1) % 4]}_2"
            table[f"elsewhere {stage}"] = lambda s=stage, f=saved: elsewhere(s, f)
    table["different_recipes"] = different_recipes
    if not several:
        table["foreign zero2"] = lambda: foreign("zero2")
        for stage in ("zero2", "zero3"):  # the stages of fp16
            table[f"loss_scale {stage}"] = lambda s=stage: loss_scale(s)
        table["together zero2"] = lambda: together("zero2")
    for stage in ("zero2_bf16", "zero3_bf16"):
        if several:
            table[f"low_precision {stage}"] = lambda s=stage: low_precision(s)
            table[f"twice {stage}"] = lambda s=stage: twice(s)
        else:
            table[f"resume {stage}"] = lambda s=stage: resume(s)
    for number in (1, 2, 3) if several else ():
        table[f"parity offload{number}"] = lambda n=number: parity(offload(n), "adamw", 3, 1, 0.5)
        table[f"idle offload{number}"] = lambda n=number: idle(offload(n), "adamw")
    # Parameters offloaded as well.
    if several:
        table["parity zero3_offload"] = lambda: parity("zero3_offload", "adamw", 3, 1, 0.5)
        table["idle zero3_offload"] = lambda: idle("zero3_offload", "adamw")
    else:
        table["resume zero3_offload"] = lambda: resume("zero3_offload")
    return table


def main() -> None:
    """Run all cells; rank 0 writes the results."""
    from mtvl.engine import start

    torch.set_num_threads(1)
    start("cpu")
    results = {}
    for name, cell in cells().items():
        started = time.monotonic()
        results[name] = {**cell(), "cell_seconds": round(time.monotonic() - started, 2)}
        if dist.is_main():
            (FOLDER / f"results_{dist.world_size()}.json").write_text(json.dumps(results, indent=1))
    finish(0)


if __name__ == "__main__":
    main()
