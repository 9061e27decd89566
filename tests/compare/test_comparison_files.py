"""Lists of methods: what is read, what is refused, what changes a run's identity, and the lists that ship with the project."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from mtvl.cli import DEFAULT_RECIPE, RECIPES, main
from mtvl.compare import sweep
from mtvl.compare.recipe import Comparison, as_overrides, load_comparison
from mtvl.compare.record import (
    CODE,
    commit_name,
    differences,
    digest_of,
    identity_of,
    last_step,
    read_record,
    read_scores,
    step_seconds,
    write_json,
)
from mtvl.config import load_run_config
from mtvl.errors import CheckpointError, ConfigError
from mtvl.model import make_plan

LINE = "{name: single, set: {petl.name: adapter, petl.bottleneck: 4}}"
ROOT = Path(__file__).resolve().parents[2]


def comparison(folder: Path, methods: str, head: str = "seeds: [0, 1]\ntasks: [vqa, gqa]") -> Comparison:
    file = folder / "list.yaml"
    file.write_text(f"base: {DEFAULT_RECIPE}\n{head}\nmethods:\n" + "".join(f"  - {m}\n" for m in methods.split("\n")))
    return load_comparison(file)


def test_runs_are_methods_times_seeds(tmp_path: Path) -> None:
    full = "{name: whole, set: {petl.name: full, optim.lr: 1.0e-3}}"
    read = comparison(tmp_path, f"{LINE}\n{full}", "seeds: [0, 7]\ntasks: [vqa]\nset: {train.steps: 5, optim.lr: 0.5}")
    runs = read.runs()
    assert [r.name for r in runs] == [
        "single_s0",
        "whole_s0",
        "single_s7",
        "whole_s7",
    ]  # every method before a second seed
    assert runs[0].config.petl == {"name": "adapter", "reduction": 10, "share": "all", "bottleneck": 4}
    assert runs[1].config.petl == {"name": "full"} and runs[3].config.seed == 7
    assert [r.config.optim.lr for r in runs[:2]] == [0.5, 0.001] and runs[0].config.train.steps == 5
    assert [r.name for r in read.runs(seeds=[3], only=["whole"])] == ["whole_s3"]
    assert load_run_config(DEFAULT_RECIPE, ["vqa"], runs[3].overrides) == runs[3].config  # what the child is told


def test_values_survive_the_command_line() -> None:
    values = {"a": "text", "b": "1", "c": True, "d": [1, 2], "e": "", "f": 1e-5, "g": "a: b"}
    typed = as_overrides(values)
    assert typed[:3] == ["a=text", 'b="1"', "c=true"]
    assert as_overrides({"backbone.name": "clip_t5"}) == ["backbone.name=clip_t5"]
    config = load_run_config(DEFAULT_RECIPE, ["vqa"], as_overrides({"optim.lr": 1e-5, "backbone.weights": ""}))
    assert config.optim.lr == 1e-5 and config.backbone["weights"] == ""


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (f"{LINE}\n{LINE}", "two methods are called 'single'"),
        ("{name: Single Adapter, set: {}}", "small letters"),
        ("{name: single}", "missing key 'methods[0].set'"),
        ("{name: single, sett: {}}", "did you mean 'set'"),
        ("{name: single, set: {}, paper: {scores: [1.0]}}", "2 numbers in the order of vqa, gqa"),
    ],
)
def test_slips_in_a_list_are_named(methods: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        comparison(tmp_path, methods)
    assert expected in str(error.value)


def test_a_wrong_setting_names_its_method(tmp_path: Path) -> None:
    read = comparison(tmp_path, "{name: single, set: {optim.lrr: 1}}")
    with pytest.raises(ConfigError, match=r"method 'single': unknown key 'optim.lrr'; did you mean 'lr'"):
        read.runs()
    with pytest.raises(ConfigError, match="did you mean 'single'"):
        comparison(tmp_path, LINE).runs(only=["singel"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compare", "--recipe", str(RECIPES / "tabel1.yaml"), "out"], "did you mean 'table1.yaml'"),
        (["compare", "--recipe", str(DEFAULT_RECIPE), "out"], "no key 'methods'"),
        (["compare", "--recipe", str(RECIPES), "out"], "expected a YAML file, found: Is a directory"),
        (["compare", "--recipe", str(RECIPES / "table1.yaml"), "seed=1"], "given with --seeds"),
        (["compare", "--recipe", str(RECIPES / "table1.yaml"), "out", "more", "seed=1"], "one folder OUT"),
        (
            ["compare", "--recipe", str(RECIPES / "table4.yaml"), "file/out", "--dry-run"],
            "file is a file; give another OUT",
        ),
        (["compare", "--recipe", str(RECIPES / "table4.yaml"), "file"], "file is a file; give another OUT"),
        (["compare", "--recipe", str(RECIPES / "table1.yaml"), "out", "seed=1"], "given with --seeds"),
        (["compare", "--recipe", str(RECIPES / "table1.yaml"), "out", "--seeds", "one"], "numbers such as 0,1,2"),
        (["compare", "--recipe", str(RECIPES / "table1.yaml"), "out", "--minutes", "-5"], "minutes from 0, found '-5'"),
        (["compare", "--recipe", str(RECIPES / "table1.yaml"), "out", "--only", "singel_adapter"], "'single_adapter'"),
        (["plan", "--recipe", str(RECIPES / "table1.yaml")], "mtvl compare --recipe"),
    ],
)
def test_mistakes_end_with_one_line(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "petl.name: adapter",
            "petl.name: adpater",
            "method 'single': unknown method 'adpater'; did you mean 'adapter'",
        ),
        (
            "petl.bottleneck",
            "petl.botleneck",
            "method 'single': unknown key 'petl.botleneck'; did you mean 'bottleneck'",
        ),
        ("petl.bottleneck: 4", "petl.layers: first:9", "method 'single': 'petl.layers' is 'first:9', but the deepest"),
        ("[vqa]", "[vqaa]", "method 'single': unknown task 'vqaa'; did you mean"),
        (str(DEFAULT_RECIPE), "tyni.yaml", "method 'single': no file "),
        ("seeds", "sedes", "list.yaml: unknown key 'sedes'; did you mean 'seeds'"),
        ("[0]", "[zero]", "list.yaml: 'seeds[0]' expects int, found 'zero'"),
        ("seeds", "launcher: run \"2'\nseeds", "list.yaml: 'launcher' "),
    ],
)
def test_slips_that_show_late_name_file_and_method(
    old: str, new: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"base: {DEFAULT_RECIPE}\ntasks: [vqa]\nseeds: [0]\nmethods:\n  - {LINE}\n"
    (tmp_path / "list.yaml").write_text(text.replace(old, new))
    assert text.count(old) == 1
    assert main(["compare", "--recipe", str(tmp_path / "list.yaml"), str(tmp_path / "out"), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'list.yaml'}" in said and expected in said


@pytest.mark.parametrize("file", ["table1.yaml", "table4.yaml"])
def test_the_lists_of_the_paper(file: str) -> None:
    """Every method can be planned; trained shares come in the paper's order where the tiny model permits."""
    read = load_comparison(RECIPES / file)
    shares = {}
    for run in read.runs(seeds=[0]):
        plan = make_plan(run.config)
        shares[run.line.name] = 100 * plan.num_trainable / plan.num_total
        assert run.line.paper.trained is not None
        # The visual embedding alone is 2.4 % here and 1.1 % there.
        assert abs(shares[run.line.name] - run.line.paper.trained) < 1.7, run.line.name
    assert len(shares) == {"table1.yaml": 11, "table4.yaml": 4}[file]
    assert shares["single_prompt"] < shares["single_adapter"] < shares["single_lora"] < shares["full"] == 100


def test_methods_are_listed_with_options_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--tasks", "vqa,gqa", "petl.share=none"]) == 0
    methods, _, _ = capsys.readouterr().out.partition("\n\n")  # the matrix follows
    lines = {line.split()[0]: line for line in methods.splitlines()}
    plan = make_plan(load_run_config(DEFAULT_RECIPE, ["vqa", "gqa"], ["petl.name=lora", "petl.rank=128"]))
    assert f"{plan.num_trainable:,}" in lines["lora"] and "rank=128" in lines["lora"] and "100.00" in lines["full"]
    assert {"adapter", "compacter", "hyperformer", "prompt", "prefix", "ia3", "bitfit", "projection"} <= set(lines)


def test_identity_holds_what_changes_a_result(tmp_path: Path) -> None:
    def identity(*overrides: str) -> dict[str, object]:
        return identity_of(load_run_config(DEFAULT_RECIPE, ["vqa"], list(overrides)))

    base = identity()
    assert not differences(base, identity("data.cache=/elsewhere", "checkpoint.every_steps=7", "data.workers=3"))
    assert differences(base, identity("optim.lr=0.02")) == ["optim.lr: 0.01 -> 0.02"]
    assert differences(base, identity("petl.bottleneck=4")) == ["petl.bottleneck: '(absent)' -> 4"]
    assert "miniworld" in base and "content of backbone.weights" in base and "tasks/vqa.yaml" in base
    assert differences({**base, "content of backbone.weights": "other"}, base)
    later = {k: v for k, v in base.items() if k != "train.recompute"}  # made before there was such a setting
    assert not differences(later, base) and differences(later, identity("train.recompute=true"))
    json.dumps(base)  # goes into the record


def test_identity_holds_a_backbone_and_not_the_run_that_made_it(tmp_path: Path) -> None:
    def content(folder: str, weights: str, log: str) -> object:
        (tmp_path / folder / "run").mkdir(parents=True)
        (tmp_path / folder / "model.safetensors").write_text(weights)
        (tmp_path / folder / "run" / "log.jsonl").write_text(log)
        config = load_run_config(DEFAULT_RECIPE, ["vqa"], [f"backbone.weights={tmp_path / folder}"])
        return identity_of(config)["content of backbone.weights"]

    first = content("first", "one", "10 seconds")
    assert content("again", "one", "11 seconds") == first != content("other", "two", "10 seconds")


def test_a_record_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "single_s0.json"
    assert read_record(file) is None
    file.write_text("{")
    with pytest.raises(CheckpointError, match="no record"):
        read_record(file)
    write_json(file, {"format": 1})
    with pytest.raises(CheckpointError, match="none of average"):
        read_record(file)
    assert [p.name for p in tmp_path.iterdir()] == ["single_s0.json"]
    record = dict.fromkeys(["method", "seed", "scores", "average", "trainable", "total", "budget"], 0)
    identity = {"optim.lr": 0.1}
    write_json(file, {**record, "format": 1, "identity": identity, "digest": digest_of(identity)})
    assert read_record(file) is not None
    file.write_text(file.read_text().replace("0.1", "0.2"))
    with pytest.raises(CheckpointError, match="was edited"):
        read_record(file)


def test_without_a_folder_the_recipe_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Path] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "compare", lambda _comparison, out, **_keys: asked.append(out) or 0)
    table = ["compare", "--recipe", str(RECIPES / "table1.yaml")]
    assert main(table) == 0 and main([*table, "train.steps=3", "here"]) == 0
    assert asked == [Path("results/table1"), Path("here")]
    assert main(["compare", "--help"]) == 0 and "default results/NAME" in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_keys: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    read = comparison(tmp_path, LINE)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr(sweep, "run_child", lambda *_args, **_keys: pytest.fail("it was run"))
    with pytest.raises(ConfigError, match="found: Read-only file system; give another OUT"):
        sweep.compare(read, tmp_path / "out")


@pytest.mark.parametrize("text", ['{"identity', "[]", '{"identity": {}}'])
def test_damaged_marks_and_scores_are_named(text: str, tmp_path: Path) -> None:
    run = comparison(tmp_path, LINE).runs()[0]
    folder = tmp_path / "out" / "runs" / run.name
    folder.mkdir(parents=True)
    for name in ("DONE", sweep.MARK, "eval.json"):
        (folder / name).write_text(text if name != "DONE" else '{"step": 2}')
    with pytest.raises(CheckpointError, match=r"compare\.json: expected a run's 'identity'.*trained again"):
        sweep.Place(tmp_path / "out").examine(run)
    with pytest.raises(CheckpointError, match=r"eval\.json: expected the scores of an evaluation"):
        read_scores(folder)
    (tmp_path / "out" / f"{run.name}.json").mkdir()
    with pytest.raises(CheckpointError, match="no record of a run .*Is a directory"):
        sweep.Place(tmp_path / "out").examine(run)


def test_time_per_step_comes_from_the_log(tmp_path: Path) -> None:
    """Samples over their rate; a run that went on counts on from what it had seen."""
    lines = [{"step": i + 1, "samples": {"a": 4 * i + 4, "b": 4 * i + 4}, "samples_per_second": 16.0} for i in range(3)]
    assert step_seconds(lines) == [0.5, 0.5, 0.5]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"step": 3, "validation": {}}])) + '\n{"st')
    assert last_step(tmp_path)["step"] == 3
    assert last_step(tmp_path / "none") == {}


def test_the_commit_is_named(tmp_path: Path) -> None:
    assert all((ROOT / folder).is_dir() for folder in CODE)
    assert commit_name(tmp_path) == "unknown"
