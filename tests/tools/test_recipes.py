"""Full-size recipes: what their headers claim, the page that lists them, and the smoke test itself."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import recipes_table  # noqa: E402
import smoke_recipes  # noqa: E402
from recipe_checks import smoke as checks  # noqa: E402
from recipe_checks.header import RECIPES, Header, chosen, full_size_recipes, read_header  # noqa: E402
from recipe_checks.smoke import Outcome, loss_faults, movement_faults, offline, smoke  # noqa: E402
from recipe_checks.world import make_stored_world  # noqa: E402

from mtvl.compare.recipe import load_comparison  # noqa: E402
from mtvl.config import RunConfig, load_run_config, parse_section, read_yaml  # noqa: E402
from mtvl.engine import Engine  # noqa: E402
from mtvl.errors import ConfigError  # noqa: E402
from mtvl.model import make_plan  # noqa: E402
from mtvl.petl import METHODS  # noqa: E402
from mtvl.petl.share import SHARES, WHOLE  # noqa: E402
from mtvl.tasks import task_names  # noqa: E402

HEADERS = full_size_recipes()
IMAGES, VIDEOS = ("vqa", "gqa", "nlvr2", "coco"), ("tvqa", "how2qa", "tvc", "yc2c")
# The published rows and what they train: table of the paper -> (trained, total) of each of its rows.
PUBLISHED = {
    "Table 1": {
        (141_156_864, 141_156_864), (19_430_400, 158_955_264), (12_725_760, 152_250_624), (6_081_600, 145_606_464),
        (8_579_088, 148_103_952), (10_584_960, 150_109_824), (3_870_240, 143_395_104), (30_020_352, 169_468_416),
        (8_786_688, 148_234_752), (6_627_200, 146_201_216), (2_843_936, 142_417_952),
    },
    "Table 2": {(224_540_160, 224_540_160), (19_381_248, 242_292_480)},
    "Table 4": {
        (139_977_216, 139_977_216), (4_901_952, 144_426_816), (7_607_040, 147_055_104), (1_664_288, 141_238_304),
    },
    "Table 5": {(1_582_848, 141_156_864), (1_632_000, 141_156_864)},
    # whose percentages count a trained tower and are not derived: what these recipes themselves train
    "Table 7": {
        (117_154_873, 117_154_873), (15_402_553, 124_255_801), (115_176_754, 115_176_754), (13_424_434, 122_277_682),
        (112_350_211, 112_350_211), (10_597_891, 119_451_139),
    },
}  # fmt: skip


# ---- headers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", HEADERS, ids=lambda h: h.name)
def test_a_header_says_what_the_recipe_does(header: Header) -> None:
    """Parameters from configurations alone; tasks and engine file are there; the command names the file."""
    plan = make_plan(load_run_config(header.recipe, (), offline(header.recipe)))
    assert (plan.num_trainable, plan.num_total) == (header.trained, header.total)
    assert header.percent == f"{100 * header.trained / header.total:.2f}"
    config = load_run_config(header.recipe)
    from_a_list = ("vqa", "gqa", "snli_ve")  # tasks of the backbone that chooses from a list of answers
    is_blip = header.name.startswith("blip/")
    known = (IMAGES, VIDEOS, IMAGES + VIDEOS, from_a_list, *((task,) for task in from_a_list))
    assert config.tasks in known or (is_blip and set(config.tasks) <= set(task_names()))
    assert (RECIPES.parents[1] / config.engine.file).is_file()
    first = header.recipe.read_text().splitlines()[0]
    path = header.recipe.relative_to(RECIPES.parents[1])
    assert first == f"# deepspeed launch/train.py --recipe {path} data.root=/data"


def test_every_published_row_has_a_recipe() -> None:
    found = {table: {(h.trained, h.total) for h in HEADERS if f"VL-Adapter, {table}," in h.row} for table in PUBLISHED}
    assert found == PUBLISHED
    assert {h.recipe for h in HEADERS} >= set((RECIPES / "vl_adapter").glob("*.yaml"))


def test_every_method_of_the_language_models_has_a_recipe() -> None:
    """Of full size, with and without parts of tasks where the paper has both, and both kinds of compacters."""
    found = [(load_run_config(h.recipe).petl, h.recipe.stem) for h in HEADERS]
    of_other_backbones = {"probe", "uniadapter", "unitrans", "vcra"}
    assert {petl["name"] for petl, _ in found} >= set(METHODS) - of_other_backbones
    assert {(p["name"], p["share"]) for p, n in found if n.startswith(("table1", "clip_bart_image")) and "share" in p} == {
        *(("adapter", share) for share in SHARES), *((name, share) for name in ("compacter", "lora", "prompt") for share in WHOLE),
    }  # fmt: skip
    assert {bool(p.get("share_rule")) for p, _ in found if p["name"] == "compacter"} == {False, True}


def test_recipes_and_comparisons_print_the_same_scores() -> None:
    """The paper's scores stand in the headers and in the lists of methods: what is at hand in one is in the other."""
    rows = [(load_comparison(RECIPES / f"{name}.yaml"), name.capitalize()) for name in ("table1", "table4")]
    for comparison, table in rows:
        title = f"VL-Adapter, {table[:-1]} {table[-1]},"
        listed = {line.name: line.paper for line in comparison.config.methods}
        headers = [h for h in HEADERS if h.row.startswith(title)]
        assert len(headers) == len(listed)
        scores = [[float(x) for x in re.findall(r" (\d+\.\d)", h.published)] for h in headers]
        assert sorted(scores) == sorted([list(paper.scores) for paper in listed.values()]), table
        assert sorted(float(h.percent) for h in headers) == pytest.approx(
            sorted(paper.trained for paper in listed.values()), abs=0.011
        )  # Multiple LoRA is printed 0.01 higher than it counts


def test_published_settings() -> None:
    """Learning rates, and which rows have words before the text, as the released scripts have them."""
    configs = {h.recipe.stem: load_run_config(h.recipe) for h in HEADERS if not h.name.startswith("blip/")}
    vil = {n: configs.pop(n) for n in list(configs) if configs[n].backbone["name"] == "clip_vil"}
    assert {n: c.optim.lr for n, c in vil.items() if n.endswith("full")} == dict.fromkeys(
        (f"table7_{task}_full" for task in ("vqa", "gqa", "snli_ve")), 5e-5
    )
    assert {(c.train.global_batch, c.optim.warmup_ratio, c.petl.get("reduction", 4)) for c in vil.values()} == {
        (256, 0.05, 4)
    }
    assert all(v["prompt"] == "" for n, c in vil.items() if n.startswith("table7") for v in c.task.values())
    rates = {name: config.optim.lr for name, config in configs.items()}
    assert rates["table1_full"] == rates["table2_full"] == 1e-4
    assert {n for n, lr in rates.items() if n.startswith("table1") and lr == 3e-4} == {
        "table1_adapter_multiple", "table1_adapter_half_up", "table1_adapter_half_down",
    }  # fmt: skip
    assert {n for n, lr in rates.items() if n.startswith("table1") and lr == 1e-3} == {
        f"table1_{n}" for n in (
            "hyperformer", "compacter_single", "compacter_multiple", "lora_single", "lora_multiple", "prompt_single",
            "prompt_multiple",
        )
    }  # fmt: skip
    assert {n: lr for n, lr in rates.items() if n.startswith("table4")} == {
        "table4_full": 3e-5, "table4_adapter_single": 3e-4, "table4_lora_single": 3e-4, "table4_prompt_single": 3e-4,
    }  # fmt: skip
    silent = {n for n, c in configs.items() if c.task and all(v.get("prompt") == "" for v in c.task.values())}
    assert silent == {n for n in configs if n.startswith("table1") and not n.endswith("single")}
    for name, config in configs.items():
        images = config.tasks == IMAGES
        batch, steps = (300, 146_000) if config.backbone["name"] == "clip_t5" else (500, 87_720)
        wanted = (batch, steps) if images else (50, 47_572) if config.tasks == VIDEOS else (320, 120_000)
        assert (config.train.global_batch, config.train.steps) == wanted, name
        assert (config.optim.name, config.optim.eps, config.optim.weight_decay, config.optim.clip_norm) == (
            "adamw_reference", 1e-6, 0.01, 5.0,
        )  # fmt: skip


def test_published_settings_of_blip() -> None:
    """Batches, rates, sizes of pictures and frames; the length is whole epochs of the published sizes."""
    configs = {h.recipe.stem: load_run_config(h.recipe) for h in HEADERS if h.name.startswith("blip/")}
    found = {n: (c.optim.lr, c.train.global_batch, c.backbone["image_size"]) for n, c in configs.items()}
    assert found.pop("uniadapter_joint") == (1e-4, 128, 384)
    assert found == {
        "base_coco_retrieval": (1e-5, 256, 384), "large_coco_retrieval": (5e-6, 128, 384), "base_flickr30k": (1e-5, 256, 384),
        "base_nlvr2": (3e-5, 256, 384), "base_caption": (1e-5, 256, 384), "large_caption": (2e-6, 128, 384), "base_vqa": (2e-5, 256, 480),
        "uniadapter_r128_coco_retrieval": (1e-5, 256, 384), "uniadapter_r512_coco_retrieval": (1e-5, 256, 384),
        "uniadapter_r128_large_coco_retrieval": (1e-5, 128, 384), "uniadapter_r512_flickr30k": (1e-5, 256, 384),
        "uniadapter_r512_msrvtt": (1e-5, 64, 224), "uniadapter_r512_didemo": (1e-5, 64, 224),
        "uniadapter_r512_vqa": (2e-5, 128, 480), "uniadapter_r512_msrvtt_qa": (2e-5, 24, 384),
        "unitrans_r64_coco_retrieval": (1e-5, 128, 384), "unitrans_r64_flickr30k": (1e-4, 128, 384),
        "unitrans_r64_vqa": (2e-5, 128, 384),
    }  # fmt: skip
    sizes = {"coco_retrieval": 566_747, "flickr30k": 145_000, "coco": 566_747, "vqa": 443_757, "msrvtt": 180_000,
             "didemo": 8_395, "msrvtt_qa": 158_581, "nlvr2": 86_373}  # fmt: skip
    for name, config in configs.items():
        assert (config.optim.weight_decay, config.optim.schedule) == (0.05, "cosine"), name
        if len(config.tasks) == 1:
            epochs = config.train.steps * config.train.global_batch / sizes[config.tasks[0]]
            assert round(epochs) in (5, 6, 10, 15) and abs(epochs - round(epochs)) < 0.01, name
            assert config.task[config.tasks[0]]["wording"] == "plain", name


HEADER = (
    "# Row: one\n# Published: none\n# Trained: 6,081,600 of 145,606,464 (4.18 %); as said\n# Hardware: any\nseed: 1\n"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# Published: none\n", "", "expected a comment '# Published: ...' above the first key, found none"),
        ("# Hardware: any\nseed: 1\n", "seed: 1\n# Hardware: any\n", "expected a comment '# Hardware"),
        ("6,081,600 of", "six of", "'# Trained:' expects the form"),
        (" (4.18 %)", "", "'# Trained:' expects the form"),
        ("# Hardware", "# Still: some\n# Hardware", "'# Still:' expects the form '19,968; why', found 'some'"),
        ("# Hardware", "# Published: x\n# Hardware", "row 4: a second comment begins with '# Published:'"),
    ],
)
def test_malformed_headers_are_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(HEADER)
    assert (read_header(file).trained, read_header(file).remark) == (6_081_600, "as said")
    file.write_text(HEADER.replace(old, new))
    with pytest.raises(ConfigError, match=r"recipe\.yaml") as error:
        read_header(file)
    assert message in str(error.value)


def test_recipes_are_chosen_by_patterns() -> None:
    assert chosen([]) == HEADERS
    assert [h.recipe.stem for h in chosen(["table4_*"])] == [
        "table4_adapter_single", "table4_full", "table4_lora_single", "table4_prompt_single",
    ]  # fmt: skip
    assert chosen(["clip_bart_joint", "vl_adapter/table2_full"]) == chosen(["clip_bart_j*", "table2*"])
    with pytest.raises(
        ConfigError, match="no full-size recipe fits 'table1_ful'; did you mean 'vl_adapter/table1_full'"
    ):
        chosen(["table1_ful"])


# ---- the page ---------------------------------------------------------------------------------------------------


def test_the_page_lists_every_recipe_as_it_is() -> None:
    table = recipes_table.markdown(HEADERS)
    text = recipes_table.PAGE.read_text()
    assert recipes_table.page(text, table) == text, "run: python tools/recipes_table.py --write"
    assert len(table.splitlines()) == len(HEADERS) + 2
    assert "| 6,081,600 of 145,606,464 (4.18 %) | 0.001 | 87,720 x 500 |" in table
    with pytest.raises(ConfigError, match="expected the lines"):
        recipes_table.page("nothing", table)


# ---- the smoke test ---------------------------------------------------------------------------------------------

TINY = ["backbone.preset=tiny", "backbone.text={vocab_size: 1751}"]  # in place of the full size, to see checks fail


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    return make_stored_world(folder / "root", folder / "miniworld", IMAGES, lambda _: None)


def test_a_full_size_recipe_trains(root: Path, tmp_path: Path) -> None:
    """One of the cheapest; tools/smoke_recipes.py does the others."""
    outcome = smoke(read_header(RECIPES / "vl_adapter" / "table1_prompt_single.yaml"), root, tmp_path / "run")
    assert outcome.faults == ()
    assert (outcome.trained, outcome.total) == (2_843_936, 142_417_952)
    assert len(outcome.losses) == 3 and outcome.moved > 10 and outcome.frozen > 100
    assert outcome.line().startswith("PASS vl_adapter/table1_prompt_single")
    saved = parse_section(RunConfig, read_yaml(tmp_path / "run" / "config.yaml"))
    assert saved.petl["length"] == 40 and saved.optim.lr == 1e-3  # whole, although the recipe is five lines


@pytest.fixture(scope="module")
def multiple() -> Header:
    """Multiple adapters, with what the tiny sizes of TINY train in the header."""
    header = read_header(RECIPES / "vl_adapter" / "table1_adapter_multiple.yaml")
    plan = make_plan(load_run_config(header.recipe, (), [*offline(header.recipe), *TINY]))
    return replace(header, trained=plan.num_trainable, total=plan.num_total)


def test_idle_tasks_are_counted(root: Path, multiple: Header, tmp_path: Path) -> None:
    outcome = smoke(multiple, root, tmp_path / "run", steps=2, changes=TINY)
    assert outcome.faults == ()
    assert len(outcome.tasks) == 2
    places, tensors = 3 * 2 + 2 * 3, 4  # of the tiny preset; weights and biases of two projections
    assert outcome.idle == (len(IMAGES) - len(outcome.tasks)) * places * tensors


@pytest.mark.parametrize(
    ("part", "fault"),
    [("embed_positions", "2 frozen tensors moved"), ("", "48 tensors of tasks that took no part moved")],
)
def test_what_must_not_move_is_seen(
    part: str, fault: str, root: Path, multiple: Header, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Engine.train_step

    def train_step(engine: Engine, number: int, batches: Any) -> Any:
        report = step(engine, number, batches)
        idle = next(task for task in IMAGES if task not in report.losses)
        for name, parameter in engine.module.named_parameters():
            if (part or f".{idle}.") in name:
                parameter.data += 1.0
        return report

    monkeypatch.setattr(Engine, "train_step", train_step)
    outcome = smoke(multiple, root, tmp_path / "run", steps=1, changes=TINY)
    assert any(fault in found for found in outcome.faults), outcome.faults
    assert outcome.line().startswith("FAIL")


def test_wrong_counts_and_still_tensors_are_seen(root: Path, multiple: Header, tmp_path: Path) -> None:
    wrong = replace(multiple, trained=multiple.trained + 1)
    changes = [*TINY, "optim.lr=1e-30"]
    faults = smoke(wrong, root, tmp_path / "run", steps=2, changes=changes).faults
    counted = [f for f in faults if f.startswith(f"the header says {wrong.trained:,d} of")]
    assert [f.split(", ")[1].split(" counts")[0] for f in counted] == ["the plan", "the model", "the engine"]
    assert any("trained tensors stood still" in f for f in faults)


def test_tensors_without_a_part_are_as_many_as_the_header_says(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(HEADER.replace("# Hardware", "# Still: 1,234; no words\n# Hardware"))
    assert read_header(file).still == 1234
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 3), "unused": torch.nn.Linear(4, 5)})
    run: Any = SimpleNamespace(model=SimpleNamespace(trainable=lambda: dict(model.named_parameters())))
    fate = {"active": set(dict(model.named_parameters())), "idle": set[str](), "frozen": set[str]()}
    used, every = {"used.weight", "used.bias"}, fate["active"]
    assert movement_faults(used, fate, run, 25) == [] == movement_faults(every, fate, run, 0)
    assert (
        "2 trained tensors stood still, 25 parameters where the header says 0" in movement_faults(used, fate, run, 0)[0]
    )
    assert movement_faults(every, fate, run, 25) == ["the header says that 25 parameters stand still, all moved"]


def test_losses_are_judged() -> None:
    good = {"step": 1, "loss": 1.0, "grad_norm": 1.0, "skipped": False}
    assert loss_faults([good], 1) == []
    assert loss_faults([good], 2) == ["expected 2 logged steps"]
    for broken in ({"loss": float("nan")}, {"grad_norm": float("inf")}, {"skipped": True}):
        assert len(loss_faults([{**good, **broken}], 1)) == 1


def test_weights_without_a_preset_are_named(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"base: {RECIPES / 'clip_bart_image.yaml'}\nbackbone: {{weights: facebook/bart-bse}}\n")
    with pytest.raises(
        ConfigError, match="no preset is known .*'facebook/bart-bse'; did you mean 'facebook/bart-base'"
    ):
        offline(file)


def says_pass(header: Header, *_: object, **__: object) -> Outcome:
    return Outcome(header.name, 1, 2, (0.5,), peak_gib=1.25)


def is_refused(*_: object, **__: object) -> Outcome:
    raise ConfigError("nothing to train")


def breaks(*_: object, **__: object) -> Outcome:
    raise ZeroDivisionError("in the middle")


def dies(*_: object, **__: object) -> Outcome:
    os._exit(9)


@pytest.mark.parametrize(
    ("act", "line", "faults"),
    [
        (says_pass, "PASS clip_bart_image", []),
        (is_refused, "FAIL clip_bart_image", ["nothing to train"]),
        (breaks, "FAIL clip_bart_image", ["no result came back", "ZeroDivisionError: in the middle"]),
        (dies, "FAIL clip_bart_image", ["no result came back", "the process ended with exit code 9"]),
    ],
)
def test_a_recipes_process_may_end_in_any_way(
    act: Any, line: str, faults: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "smoke", act)
    found, said = smoke_recipes.run_one(chosen(["clip_bart_image"])[0], tmp_path, tmp_path / "run", 3, [])
    assert found.startswith(line)
    assert [said[0], said[-1]] == [faults[0], faults[-1]] if faults else not said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tabel1_full"], 2, "no full-size recipe fits 'tabel1_full'"),
        (["table1_full", "optim.lrr=1"], 2, "unknown key 'optim.lrr'"),
        (["--steps", "0"], 2, "--steps expects a number above 0"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = smoke_recipes.main(arguments)
    except SystemExit as end:
        found = int(str(end.code))
    assert found == code and message in capsys.readouterr().err
