"""A small backbone from the training texts of sets: what is read, how it is damaged, and that the result is a backbone."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from mtvl.backbones import clip_bart_config
from mtvl.backbones.clip_bart import ClipBart
from mtvl.backbones.clip_bart_config import ClipBartConfig
from mtvl.backbones.lite_tower import LiteTower
from mtvl.errors import DataError
from mtvl.types import Example, Segment, Target, Visual

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from pretrain_small import main  # noqa: E402
from pretraining.damage import MASK, SEEN, TEXT, Reader, asked, damaged  # noqa: E402

PHOTO, FILM = Visual(("a.png",)), Visual(video="v.mp4")
QUESTION = Example(
    "1", "q", (Segment("prompt", "q: "), Segment("question", "what is on the table?")), PHOTO, (Target("lamp"),)
)
CAPTION = Example("2", "c", (Segment("prompt", "c: "),), PHOTO, (Target("a lamp on a wooden table"),))
MOMENT = Example(
    "3", "m", (Segment("subtitles", "[Subs]"), Segment("prompt", " m: ")), FILM, (Target("a man cooks soup"),)
)
MINI = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}  # fmt: skip


def test_questions_never_meet_their_answers() -> None:
    reader = Reader.of({"q": [QUESTION], "c": [CAPTION], "m": [MOMENT]}, seed=0)
    assert reader.texts == ["what is on the table?", "a lamp on a wooden table", "a man cooks soup"]
    assert reader.answers == ["lamp"] and [e.uid for e in reader.seen] == ["2", "3"]
    assert asked(QUESTION) and not asked(CAPTION) and not asked(MOMENT)
    for step in range(30):
        for example in reader.batch(step, 4, is_seen=False):
            assert not example.visual.images and not example.visual.video
            assert example.segments[0].text.startswith(TEXT)
            assert MASK in example.segments[0].text or example.targets[0].text == "lamp"
            words = {w for w in example.segments[0].text.split()[1:] if w != MASK}
            assert words <= set(example.targets[0].text.split()) and example.targets[0].text in reader.texts + ["lamp"]
    with pytest.raises(DataError, match="expected texts in the training split of q, found none"):
        Reader.of({"q": []}, seed=0)


def test_a_step_is_a_function_of_its_number_and_both_kinds_of_input_come_as_often() -> None:
    other = [replace(MOMENT, uid=str(i)) for i in range(50)]
    reader, again = (Reader.of({"c": [CAPTION], "m": other}, seed=1) for _ in range(2))
    batches = [reader.batch(step, 3, is_seen=True) for step in range(200)]
    assert batches == [again.batch(step, 3, is_seen=True) for step in range(200)]
    assert all(len({bool(e.visual.video) for e in batch}) == 1 for batch in batches)
    assert 70 < sum(bool(batch[0].visual.video) for batch in batches) < 130
    rng = random.Random(0)
    sources = [damaged(CAPTION, rng).segments[0].text for _ in range(300)]
    assert 0.3 < sum(s == SEEN + MASK for s in sources) / 300 < 0.6 and len(set(sources)) > 10


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Captions and questions on four pictures, as own tasks."""
    folder = tmp_path / "data"
    colours = ["red", "green", "blue", "white"]
    for name, kind, rows in (
        ("walls", "caption", [{"id": c, "picture": f"{c}.png", "captions": [f"a {c} wall"]} for c in colours]),
        (
            "asks",
            "answer",
            [{"id": c, "picture": f"{c}.png", "text": "what colour is it?", "answers": [c]} for c in colours],
        ),
    ):
        (folder / name / "pictures").mkdir(parents=True)
        for colour in colours:
            Image.new("RGB", (8, 8), colour).save(folder / name / "pictures" / f"{colour}.png")
        for split in ("train", "val", "test"):
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"format": "own_table", "files": {s: {"rows": [f"{name}/{s}.jsonl"]} for s in ("train", "val", "test")},
                  "pictures": [f"{name}/pictures/{{name}}"]}  # fmt: skip
        metric = "cider" if kind == "caption" else "accuracy"
        task = {"kind": kind, "primary": metric, "prompt": f"{name}: ", "sources": [source]}
        (folder / "tasks").mkdir(exist_ok=True)
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_the_result_is_a_backbone_and_repeatable(
    root: Path, lite_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(clip_bart_config.PRESETS, "small", {"vocab_size": 0, **MINI})
    common = [
        "--tasks",
        "walls,asks",
        "--steps",
        "3",
        "--rows",
        "2",
        f"data.root={root}",
        f"data.cache={tmp_path / 'c'}",
    ]
    for name in ("one", "two"):
        assert main([str(tmp_path / name), *common]) == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second
    record = json.loads((tmp_path / "one/backbone.json").read_text())["recipe"]
    assert record["tasks"] == ["walls", "asks"] and record["captions"] == 4 and record["texts"] == 5
    assert record["val_loss_seen"] > 0 and record["val_loss_unseen"] > 0 and record["seen"] == 0.5
    model = ClipBart.build(ClipBartConfig(weights=str(tmp_path / "one")))
    assert isinstance(model.tower(), LiteTower) and model.max_frames == 8
    assert model.tokenizer().decode(model.tokenizer().encode("what colour is a wall")) == "what colour is a wall"
    other = ClipBart.build(ClipBartConfig(weights=str(tmp_path / "two"), init_seed=5))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert main([str(tmp_path / "one"), *common]) == 2
    assert "holds a finished backbone already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "wals"], "unknown task 'wals'; did you mean 'walls'"),
        (["--tasks", "walls", "--steps", "0"], "expected --steps and --rows above 0"),
        (["--tasks", "walls", "--seen", "2"], "--seen in 0..1, found 1500, 64 and 2.0"),
        (["--tasks", "walls", "optim.lr=1"], "only data.* keys can be set here, found 'optim.lr=1'"),
        (["--tasks", "walls", "data.rot=1"], "unknown key 'data.rot'"),
    ],
)
def test_slips_are_named(
    arguments: list[str], words: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "out"), *arguments, f"data.root={root}"]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_the_extra_it_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)  # type: ignore[arg-type]
    monkeypatch.setitem(clip_bart_config.PRESETS, "small", {"vocab_size": 0, **MINI})
    assert main([str(tmp_path / "out"), "--tasks", "walls", f"data.root={root}"]) == 2
    assert "pip install -e '.[small]'" in capsys.readouterr().err
