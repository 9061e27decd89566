"""`mtvl frames`, `mtvl modalities`, and what `inspect` and `predict` say of retrieval: on one tiny trained run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtvl.cli import main
from mtvl.config import RunConfig, load_run_config
from mtvl.errors import ConfigError
from mtvl.figures.frames import frames_figure
from mtvl.figures.modalities import choose_layers, listening, modalities_figure, pca, tsne
from mtvl.model import build_model, make_plan
from mtvl.train import train
from mtvl.types import Batch

pytest.importorskip("matplotlib")
RECIPE = Path(__file__).parents[2] / "launch" / "recipes" / "tiny_blip.yaml"
TASKS = ("tvqa", "vqa", "coco_retrieval")


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of UniAdapter on a video, a question and pairs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    small = [
        f"data.root={world}", f"data.cache={folder / 'cache'}", "train.steps=3", "train.global_batch=4",
        "train.micro_batch=4", "data.workers=0", "backbone.image_size=32", "backbone.text.width=32", "backbone.text.ffn=64",
        "backbone.vision.width=32", "pairs.queue_size=24", "mixture.block=3", "petl.name=uniadapter", "petl.bottleneck=4",
        "backbone.frames=5", "data.max_examples=12",
    ]  # fmt: skip
    assert train(load_run_config(RECIPE, TASKS, small), folder).code == 0
    return folder


def is_drawn(files: tuple[Path, Path]) -> bool:
    """True for a PNG with several colours beside an SVG."""
    png, svg = files
    return len(np.unique(np.asarray(Image.open(png).convert("L")))) > 20 and svg.read_text().lstrip().startswith(
        "<?xml"
    )


def test_frames_are_weighed_by_each_text(run: Path, tmp_path: Path) -> None:
    own, files = frames_figure(run, "tvqa", "3")
    assert files[0].parent == run / "figures" and is_drawn(files) and len(own[0].weights) == 5
    assert sum(own[0].weights) == pytest.approx(1)
    asked = ["who is red?", "what jumps?"]
    two, files = frames_figure(run, "tvqa", "3", texts=asked, rule="paper", out=tmp_path / "two.png")
    assert is_drawn(files) and [w.text.endswith(t) for w, t in zip(two, asked, strict=True)] == [True, True]
    assert two[0].weights != two[1].weights
    again, same = frames_figure(run, "tvqa", "3", texts=asked, rule="paper", out=tmp_path / "again.png")
    assert again == two and same[0].read_bytes() == files[0].read_bytes()


def test_inputs_of_adapters_by_modality(run: Path, tmp_path: Path) -> None:
    found, files = modalities_figure(run, count=6, out=tmp_path / "m")
    assert is_drawn(files) and [layer.layer for layer in found] == [0, 1, 2]
    for layer in found:
        assert set(layer.points) == {"visual", "text", "fusion", "decoder fusion"}
        assert len(layer.points["visual"]) == 6 + 6 + 6 * 5  # frames of the video are rows of the vision transformer
        assert 0 < layer.shares[1] <= layer.shares[0] <= 1
    one, files = modalities_figure(run, ["vqa"], count=6, layers=[1], out=tmp_path / "one", projection="tsne")
    assert (
        is_drawn(files)
        and one[0].shares is None
        and [layer.layer for layer in one] == [1]
        and set(one[0].points) == {"visual", "fusion", "decoder fusion"}
    )


def test_near_points_stay_near_in_a_plane() -> None:
    """Groups that two main components mix come apart; few and equal points are no fault."""

    def purity(points: np.ndarray) -> float:
        distances = ((points[:, None] - points[None]) ** 2).sum(-1) + np.diag(np.full(len(points), np.inf))
        return float((groups[distances.argsort(1)[:, :4]] == groups[:, None]).mean())

    random, groups = np.random.default_rng(0), np.arange(72) % 6
    points = 4 * np.eye(6, 12)[groups] + random.normal(size=(72, 12)) * 0.5
    assert purity(tsne(points, 0)) > 0.99 > 0.9 > purity(pca(points)[0])
    assert np.array_equal(tsne(points, 0), tsne(points, 0))
    assert all(np.isfinite(tsne(few, 0)).all() for few in (points[:3], np.repeat(points[:3], 4, 0), points[[0, 0, 0]]))


def test_main_components_are_those_of_the_covariance() -> None:
    points = np.random.default_rng(0).normal(size=(200, 5)) * [5, 1, 3, 0.5, 0.2] + 7
    plane, shares = pca(points)
    assert np.allclose(np.abs(np.corrcoef(plane[:, 0], points[:, 0])[0, 1]), 1, atol=0.02)
    assert np.allclose(plane.var(0) / points.var(0).sum(), shares) and shares[0] > shares[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frames", "RUN", "--task", "tvqa", "--item", "nobody"], "no example 'nobody'"),
        (["frames", "RUN", "--task", "tvqaa"], "did you mean 'tvqa'"),
        (["frames", "RUN", "--task", "vqa"], "no frames to weigh"),
        (["frames", "RUN", "--task", "tvqa", "--rule", "cosin"], "did you mean 'cosine'"),
        (["frames", "/nowhere", "--task", "tvqa"], "/nowhere is no run"),
        (["frames", "RUN", "--task", "tvqa", "--out", "PNG/under/a/file"], "cannot be written"),
        (["modalities", "RUN", "--layers", "7"], "no adapters in layer 7"),
        (["modalities", "RUN", "--projection", "umap"], "known: pca, tsne"),
        (["modalities", "RUN", "--examples", "1"], "at least 3"),
        (["modalities", "RUN", "backbone.frame=3"], "backbone.frame"),
        (["predict", "--checkpoint", "RUN", "--task", "coco_retrieval", "--image", "PNG"], "give --text"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_says_why(
    run: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    names = {"RUN": str(run), "PNG": str(picture)}
    arguments = [names.get(a, str(picture / a[4:]) if a.startswith("PNG/") else a) for a in arguments]
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(ConfigError, match=r"pip install 'mtvl\[plots\]'"):
        modalities_figure(run)


def test_a_method_without_adapters_has_nothing_to_draw(world: Path, run: Path, tmp_path: Path) -> None:
    for name in ("full", "prefix"):
        plan = make_plan(load_run_config(RECIPE, ["vqa"], [f"petl={{name: {name}}}"]))
        with pytest.raises(ConfigError, match=f"'{name}' puts no adapters into layers"):
            choose_layers(plan, [])


def test_a_bottleneck_is_heard_with_what_it_reads(
    tiny_config: Callable[..., RunConfig], make_batch: Callable[..., Batch]
) -> None:
    """It reads the output of its map, other adapters the input: `adapter` at a block's end is given the block's width."""
    given: list[tuple[torch.Tensor, ...]] = []
    for name, position in (("adapter", 1), ("lora", 0)):
        given.clear()
        model = build_model(tiny_config({"name": name})).eval()
        model.set_task("vqa")
        path = [i.site.path for i in model.plan.injections if i.site.stack == "encoder" and i.site.layer == 0][-1]
        model.backbone.get_submodule(path).adapter.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
        with torch.no_grad(), listening(model.backbone, model.plan, [0]) as heard:
            model.logits(make_batch())
        assert not torch.equal(given[0][0][:, 0], given[0][1][:, 0])
        assert np.array_equal(heard[0]["encoder"][0], given[0][position][:, 0].numpy())


def test_retrieval_is_inspected_and_predicted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "task=coco_retrieval", "index=2", f"checkpoint={run}", "--recipe", str(RECIPE)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "cosine" in said and "chance" in said and "features        (1, 1, 1024, 3)" in said
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / name)
    images = [f"--image={tmp_path / name}" for name in ("a.png", "b.png")]
    assert (
        main(["predict", "--checkpoint", str(run), "--task", "coco_retrieval", *images, "--text", "a red square"]) == 0
    )
    lines = capsys.readouterr().out.strip().splitlines()
    scores = [float(line.split("score ")[1].split()[0]) for line in lines]
    assert len(lines) == 2 and scores == sorted(scores, reverse=True) and {Path(line.split()[0]).name for line in lines} == {
        "a.png", "b.png"
    }  # fmt: skip


def test_inspection_draws_what_the_first_epochs_see(
    run: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    widths = {}
    for split in ("train", "val"):
        arguments = ["inspect", "task=coco_retrieval", f"split={split}", "--recipe", str(RECIPE), f"data.root={world}"]
        assert (
            main([*arguments, "data.augment.least_area=0.5", "data.augment.operations=2", "data.max_examples=6"]) == 0
        )
        widths[split] = Image.open(tmp_path / "runs" / "inspect" / f"coco_retrieval-{split}-0.png").width
    assert widths == {"train": 5 * 160, "val": 320}


def test_inspection_shows_the_loss_of_all_answers(run: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "task=vqa", "index=1", "--recipe", str(RECIPE), f"data.root={world}", "task.vqa.loss=answers",
                 "task.vqa.decoding.mode=rank_list", "data.max_examples=6"]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "answers by their weights, each summed over its tokens" in said and "answer now" in said
