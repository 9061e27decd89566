"""Memory, bytes and time of a recipe from shapes alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mtvl.backbones.clip_config import by_preset
from mtvl.backbones.clip_t5_config import ClipT5Config
from mtvl.cli import DEFAULT_RECIPE, RECIPES, main
from mtvl.config import RunConfig, load_run_config
from mtvl.errors import ConfigError, EngineError
from mtvl.estimate.devices import TABLE, load_device
from mtvl.estimate.report import Work, estimate_rows, layouts, trace_work
from mtvl.estimate.shapes import largest_batch, rows_of
from mtvl.estimate.stages import Layout, Sizes, memory, traffic
from mtvl.estimate.trace import Pass, _Live, fake_tensors, held_beside, make_fake
from mtvl.model import Model, build_model, make_plan
from mtvl.types import Batch

SIZES = Sizes(frozen={"trunk": 4_000_000, "norm": 1_000}, trained={"a": 200_000, "b": 200_000})
ONE = Pass("vqa", 8, 10**6, 10**9, {"a": 200_000})


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_run_config(
        DEFAULT_RECIPE, ["vqa", "nlvr2"], ["train.global_batch=12", "train.micro_batch=4", "petl.share=none"]
    )


@pytest.fixture(scope="module")
def work(config: RunConfig) -> Work:
    return trace_work(config, 2)


def test_sizes_are_the_plans(config: RunConfig, work: Work) -> None:
    plan = make_plan(config)
    assert sum(work.sizes.trained.values()) == plan.num_trainable
    assert sum(work.sizes.trained.values()) + sum(work.sizes.frozen.values()) == plan.num_total
    assert (work.rows, work.micro_steps) == (3, 2)


def test_a_task_trains_its_own_parts(work: Work) -> None:
    for task, other in (("vqa", "nlvr2"), ("nlvr2", "vqa")):
        names = work.passes[task].trained
        assert any(f".{task}." in n for n in names) and not any(f".{other}." in n for n in names)


def held_by_a_real_pass(model: Model, batch: Batch) -> int:
    """The same counter on real tensors: most bytes alive beside parameters, their gradients and the batch."""
    model.set_task(batch.task)
    with held_beside(model, batch) as live:
        model(batch).backward()
    return live.peak


def test_activations_are_what_a_real_pass_holds(config: RunConfig) -> None:
    """In float32, with the loss that training takes."""
    rows = rows_of(config, 2)
    model = build_model(config)
    batch = largest_batch(config, "nlvr2", model.backbone, rows)
    assert batch.features.shape[1] == 2
    held = held_by_a_real_pass(model, batch)
    assert trace_work(config, 2).passes["nlvr2"].activation_bytes == pytest.approx(held, rel=0.05)


def test_the_counter_follows_lifetimes() -> None:
    live = _Live()
    with live:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1  # a view holds nothing of its own
        del a
        c = torch.zeros(250)
    assert (live.bytes, live.peak) == (4000 + 1000, 8000)
    del b, c
    assert live.bytes == 0


def test_gradients_are_left_out_when_they_are_complete() -> None:
    """Backward begins with all activations and no gradient: what is there at the end must not be subtracted then."""
    rows, width, layers = 64, 64, 8
    model = nn.Sequential(*(nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU()) for _ in range(layers)))
    empty = torch.zeros(rows, 0)
    with held_beside(model, Batch("a", ("",) * rows, empty, empty, empty, empty, empty)) as live:
        model(torch.randn(rows, width)).sum().backward()
    size = 4 * rows * width  # of an activation, kept once a layer, and of a gradient
    assert live.peak >= layers * size
    assert live.bytes <= 2 * size  # the gradients that stay are no longer counted


def test_fake_parameters_stay_tied_and_frozen() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.requires_grad_(False)
    with fake_tensors():
        make_fake(model, torch.bfloat16)
    assert model[0].weight is model[1].weight and not model[0].weight.requires_grad
    assert model[0].weight.dtype == torch.bfloat16 and model[0].weight.device.type == "cpu"


def test_memory_by_stage() -> None:
    """What each stage splits over 4 devices, by hand."""
    found = {stage: memory(SIZES, Layout(stage, 4), 7_000_000) for stage in range(4)}
    assert all(m.activations == 7_000_000 for m in found.values())
    assert found[0].optimizer == 2 * 4 * 400_000 and found[2].optimizer == 3 * 4 * 100_000
    assert found[0].parameters == found[2].parameters == 4 * 4_401_000
    assert found[2].gradients == 4 * (400_000 + 100_000) < found[1].gradients
    low = memory(SIZES, Layout(3, 4, live=10**6, reuse=0), 7)
    # parts of all, the norm whole, and the widest tensor gathered
    assert low.parameters == 4 * ((1_000_000 + 250 + 100_000) + 1_000 + 4_000_000)
    assert found[3].parameters > low.parameters  # DeepSpeed's bounds keep all of a small model gathered


def test_the_update_counts_where_activations_are_few() -> None:
    """Beside gradients it holds roots of moments, or gradients in one piece; ZeRO-2 has given its bucket back by then."""
    few = {(stage, world): memory(SIZES, Layout(stage, world), 7).activations for stage in range(4) for world in (1, 4)}
    more = {(0, 1): 4 * 400_000, (0, 4): 4 * 400_000, (2, 1): 4 * (3 - 2) * 400_000}
    assert few == {cell: more.get(cell, 7) for cell in few}
    assert memory(SIZES, Layout(2, 1, offload_optimizer=True), 7).activations == 7


def test_the_bucket_is_the_engine_files(tmp_path: Path, config: RunConfig) -> None:
    """Taken whole by DeepSpeed, also where fewer gradients would fill it; twice where sending and collecting overlap."""
    own = {stage: memory(SIZES, Layout(stage, 4), 0).gradients for stage in (1, 2, 3)}
    file = tmp_path / "engine.json"
    for overlap, times in (("false", (1, 1, 1)), ("true", (2, 2, 1))):
        file.write_text(
            f'{{"zero_optimization": {{"stage": 2, "reduce_bucket_size": 5000000, "overlap_comm": {overlap}}}}}'
        )
        found = layouts(replace(config, engine=replace(config.engine, file=str(file))), 4)
        assert [x.stage for x in found] == [0, 1, 2, 3]
        for layout, buffers in zip(found[1:], times, strict=True):
            more = memory(SIZES, layout, 0).gradients - own[layout.stage]
            assert more == 4 * (buffers * 5_000_000 - 400_000)
    large = Sizes({}, {"a": 10**9})
    assert memory(large, Layout(2, 4), 0).gradients == 4 * (500_000_000 + 250_000_000)  # no more than the trainer takes


def test_offload_moves_to_the_host() -> None:
    on, off = (memory(SIZES, Layout(3, 4, offload_optimizer=o, offload_param=o), 0) for o in (False, True))
    assert on.host == 0 and off.host > 0 and off.optimizer == 0 and off.total < on.total


def test_traffic_by_hand() -> None:
    passes = [ONE, ONE]
    assert all(traffic(SIZES, Layout(stage, 1), passes) == 0 for stage in range(4))
    ring = 3 / 4
    assert traffic(SIZES, Layout(0, 4), passes) == 2 * ring * 4 * 400_000
    assert traffic(SIZES, Layout(1, 4), passes) == ring * 4 * (2 * 200_000 + 400_000)
    assert traffic(SIZES, Layout(2, 4), passes) == ring * 4 * (4 * 200_000 + 400_000)
    low, high = (traffic(SIZES, Layout(3, 4, reuse=reuse), passes) for reuse in (0, 10**9))
    assert low - high == ring * 4 * 2 * 4_400_000  # the large ones once more for backward
    sizes = replace(SIZES, tied=1_000)
    others = traffic(sizes, Layout(3, 4), passes, alternates=True)
    assert others == ring * 4 * (2 * 2 * (4_001_000 + 200_000) + (4_400_000 - 1_000) + 2 * 200_000)


def test_what_does_not_fit_is_marked(config: RunConfig, work: Work) -> None:
    device = load_device("t4", "fp32")
    assert all(row.fits for row in estimate_rows(config, 1, 2, device, work))
    small = replace(device, memory_gib=device.reserve_gib + 0.001)
    assert not any(row.fits for row in estimate_rows(config, 1, 2, small, work))


def test_more_devices_take_less_time_and_memory(config: RunConfig, work: Work) -> None:
    device = load_device("a100_80", "fp32")
    near, far = (estimate_rows(config, nodes, 2 // nodes, device, work) for nodes in (1, 2))
    assert all(a.seconds < b.seconds for a, b in zip(near, far, strict=True))  # the network is slower than the link
    assert [row.layout.stage for row in near] == [0, 1, 2, 3]


def test_layouts_follow_the_engine_file(tmp_path: Path, config: RunConfig) -> None:
    file = tmp_path / "engine.json"
    file.write_text(
        '{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "stage3_max_reuse_distance": 5}}'
    )
    found = layouts(replace(config, engine=replace(config.engine, file=str(file))), 2)
    assert [x.stage for x in found] == [0, 1, 2, 3, 3] and found[-1].offload_param and found[-1].reuse == 5
    with pytest.raises(EngineError, match="'train.precision' is bf16 but the engine file"):
        layouts(replace(config, train=replace(config.train, precision="bf16")), 2)
    config = replace(config, engine=replace(config.engine, file=str(file)))
    file.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}')
    assert layouts(config, 2)[2].bucket == Layout.bucket
    file.write_text('{"zero_optimization": {"stage": 2, "compute_grad_norm": false}}')
    with pytest.raises(EngineError, match="'zero_optimization.compute_grad_norm' is off"):
        layouts(config, 2)


def test_every_device_is_complete() -> None:
    import yaml

    for name in yaml.safe_load(TABLE.read_text()):
        assert load_device(name, "fp32").memory_gib > load_device(name, "fp32").reserve_gib
    with pytest.raises(ConfigError, match="unknown device 'a100'; did you mean .*'a100_80'"):
        load_device("a100", "fp32")
    with pytest.raises(ConfigError, match="v100 does not compute in bf16"):
        load_device("v100", "bf16")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "estimate",
        "--tasks",
        "vqa",
        "--nodes",
        "2",
        "--gpus-per-node",
        "4",
        "--device",
        "t4",
        "train.recompute=true",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "2 x 4 t4 (16 GiB" in out and out.count("ZeRO ") == 4 and "computed again in backward" in out
    for wrong, expected in (
        (["--nodes", "0"], "--nodes must be 1 or more"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ):
        assert main(["estimate", "--tasks", "vqa", *wrong]) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize(("name", "least"), [("clip_bart_large", 400), ("clip_t5_large", 700)])
def test_large_recipes_are_counted_as_they_stand(name: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the presets of their public weights: nobody is asked for them."""
    monkeypatch.setattr("transformers.utils.hub.cached_files", pytest.fail)
    config = load_run_config(RECIPES / "large" / f"{name}.yaml")
    assert config.backbone["weights"].count("/") == 1
    assert len(config.tasks) == 4 and config.train.precision == "bf16"
    assert all(layout.precision == "bf16" for layout in layouts(config, 16))
    plan = make_plan(config)
    assert plan.num_total > least * 10**6
    named = replace(config, backbone={**config.backbone, "weights": "", "preset": "large"})
    assert make_plan(named).num_total == plan.num_total and make_plan(named).num_trainable == plan.num_trainable


def test_a_folder_of_that_name_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t5-base").mkdir()
    config = ClipT5Config(weights="t5-base")
    assert by_preset(config).preset == "base" and by_preset(config).weights == ""
    monkeypatch.chdir(tmp_path)
    assert by_preset(config) is config
    assert by_preset(ClipT5Config(weights="someone/else")).weights == "someone/else"


def test_all_answers_of_a_row_are_counted() -> None:
    """Three a row, each with its own states of the decoder, as a real pass on such a batch holds them."""
    blip = ("backbone.name=blip", "backbone.kind=vqa", "backbone.preset=tiny", "backbone.tokenizer=tiny_blip")
    sizes = ("petl.name=full", "train.global_batch=8", "train.micro_batch=8", "task.vqa.limits.target_tokens=12")
    drawn = load_run_config(DEFAULT_RECIPE, ["vqa"], [*blip, *sizes])
    all_at_once = load_run_config(DEFAULT_RECIPE, ["vqa"], [*blip, *sizes, "task.vqa.loss=answers"])
    model = build_model(all_at_once)
    batch = largest_batch(all_at_once, "vqa", model.backbone, 8)
    assert batch.choice_ids.shape == (8, 3, 12)
    held = held_by_a_real_pass(model, batch)
    found = trace_work(all_at_once, 1).passes["vqa"]
    assert found.activation_bytes == pytest.approx(held, rel=0.05)
    assert found.flops > trace_work(drawn, 1).passes["vqa"].flops


# ----------------------------------------------------------------------------------------------------------- pairs


PAIRS = [
    "backbone.name=blip", "backbone.kind=joint", "backbone.preset=tiny", "backbone.tokenizer=tiny_blip", "petl.name=full",
    "pairs.queue_size=64", "pairs.all_ranks=true", "train.global_batch=8", "train.micro_batch=4",
]  # fmt: skip


def pairs_config(*overrides: str, tasks: tuple[str, ...] = ("coco_retrieval",)) -> RunConfig:
    return load_run_config(DEFAULT_RECIPE, tasks, [*PAIRS, *overrides])


@pytest.fixture(scope="module")
def pairs() -> Work:
    """Four rows on each of two ranks."""
    return trace_work(pairs_config(tasks=("coco_retrieval", "msrvtt")), 2)


def test_pairs_are_traced_with_teacher_and_queue(pairs: Work) -> None:
    work, plan = pairs, make_plan(pairs_config())
    assert work.has_pairs
    trained = work.passes["coco_retrieval"].trained
    assert any(".match." in n for n in trained) and not any(".decoder." in n for n in trained)
    untaught = sum(
        n for name, n in work.sizes.trained.items() if name.split(".")[1] in ("match", "temperature", "decoder")
    )
    assert work.sizes.buffer_bytes > 4 * (plan.num_trainable - untaught)  # and the teacher's averages
    assert work.passes["msrvtt"].activation_bytes > work.passes["coco_retrieval"].activation_bytes  # frames


def test_activations_of_pairs_are_what_a_real_pass_holds() -> None:
    config = pairs_config("backbone.vision={width: 64, layers: 3, heads: 4}", "backbone.text.width=64")
    model = build_model(config)
    model.begin_pairs(config.pairs)
    batch = largest_batch(config, "coco_retrieval", model.backbone, rows_of(config, 1))
    held = held_by_a_real_pass(model, batch)
    found = trace_work(config, 1).passes["coco_retrieval"]
    assert found.activation_bytes == pytest.approx(held, rel=0.05)
    assert found.exchanged_bytes == 0


def test_ranks_exchange_rows_for_pairs(pairs: Work) -> None:
    """Forward gathers and backward sums: rows of all ranks, tokens of pictures above all."""
    one, two = trace_work(pairs_config("train.global_batch=4"), 1), pairs
    assert one.rows == two.rows == 4
    alone, together = one.passes["coco_retrieval"], two.passes["coco_retrieval"]
    tokens, width = (32 // 8) ** 2 + 1, 32
    assert alone.exchanged_bytes == 0
    assert together.exchanged_bytes > 3 * 4 * (2 * 4 * tokens * width)
    assert together.activation_bytes > alone.activation_bytes
    for stage in range(3):
        layout = Layout(stage, 2)
        bare = traffic(two.sizes, layout, [replace(together, exchanged_bytes=0)] * two.micro_steps)
        assert two.sent_bytes(layout, "coco_retrieval") == bare + two.micro_steps * together.exchanged_bytes // 2


def test_pairs_leave_zero3_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--tasks", "coco_retrieval", "--gpus-per-node", "2", "--device", "t4", *PAIRS]) == 0
    out = capsys.readouterr().out
    assert out.count("ZeRO ") == 3 and "ZeRO-3 is left out" in out


def test_rows_without_words_take_another_way() -> None:
    """Captions of the joint BLIP read the picture itself; nothing of the text's encoder is trained by them."""
    config = load_run_config(DEFAULT_RECIPE, ["vqa", "coco"], PAIRS)
    work = trace_work(config, 2)
    asked, written = (set(work.passes[task].trained) for task in config.tasks)
    assert not work.has_pairs and written < asked
    model = build_model(config)
    batch = largest_batch(config, "coco", model.backbone, 2)
    model.set_task("coco")
    model(batch).backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == written
