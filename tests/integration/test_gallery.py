"""`mtvl gallery`: what is drawn, what the files hold, and what it says when something is missing."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageFont

from mtvl.cards import RIGHT, WRONG, wrapped
from mtvl.cli import main, run_gallery
from mtvl.config import DataConfig, EvaluateConfig, RunConfig, to_plain
from mtvl.errors import CheckpointError, ConfigError, DataError
from mtvl.export import FORMAT

EVIL = '<script>alert("1")</script> & more'
COLOURS = ["red", "lime", "blue", "black", "white", "yellow"]


def write_task(root: Path, name: str, kind: str, rows: list[dict], **settings: object) -> None:
    """An own task on one picture or strip a row, the same rows in every split."""
    media = "videos" if "video" in settings else "pictures"
    source = {
        "format": "own_table", "files": {s: {"rows": [f"{name}/{s}.jsonl"]} for s in ("train", "val", "test")},
        media: [f"{name}/{media}/{'{vid_name}' if media == 'videos' else '{name}'}"],
    }  # fmt: skip
    for split in ("train", "val", "test"):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "tasks").mkdir(exist_ok=True)
    metric = "cider" if kind == "caption" else "accuracy"
    values = {"kind": kind, "primary": metric, "prompt": f"{name}: ", "sources": [source], **settings}
    (root / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(values))


def write_predictions(run: Path, task: str, texts: dict[str, str], split: str = "") -> None:
    folder = run / f"predictions{split}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"uid": uid, "text": text}) for uid, text in texts.items()]
    (folder / f"{task}.jsonl").write_text("".join(line + "\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An evaluated run of four tasks: questions, choices, captions, and questions on videos."""
    root, run = tmp_path / "data", tmp_path / "run"
    asked = [{"id": str(i), "picture": f"{c}.png", "text": f"what <b>colour</b> {i}?", "answers": [c]}
             for i, c in enumerate(COLOURS)]  # fmt: skip
    write_task(root, "colours", "answer", asked)
    choices = [{"id": r["id"], "picture": r["picture"], "text": "which?", "choices": ["a hat", "a cat"], "answer": 1}
               for r in asked]  # fmt: skip
    write_task(root, "hats", "choice", choices, decoding={"mode": "rank", "choices": ["a0", "a1"], "max_tokens": 8})
    captions = [{"id": r["id"], "picture": r["picture"], "captions": [f"a plain {r['answers'][0]} wall outside"]}
                for r in asked]  # fmt: skip
    write_task(root, "walls", "caption", captions)
    moving = [{"id": r["id"], "video": f"v{r['id']}", "text": r["text"], "answers": r["answers"]} for r in asked]
    write_task(root, "moving", "answer", moving, video={"span": "text", "subtitles": "all"})
    for name in ("colours", "hats", "walls"):
        (root / name / "pictures").mkdir()
        for colour in COLOURS:
            Image.new("RGB", (40, 30), colour).save(root / name / "pictures" / f"{colour}.png")
    (root / "moving/videos").mkdir()
    for number in range(len(COLOURS)):
        Image.new("RGB", (120, 30), "teal").save(root / f"moving/videos/v{number}.3x1.png")
    for name in ("colours", "moving"):
        write_predictions(run, name, {str(i): c if i < 3 else EVIL for i, c in enumerate(COLOURS)})
    write_predictions(run, "hats", {str(i): f"a{i % 2}" for i in range(len(COLOURS))})
    write_predictions(run, "walls", {str(i): f"a plain {'red' if i < 3 else 'pink'} wall outside" for i in range(6)})
    config = RunConfig(
        tasks=("colours", "hats", "walls", "moving"),
        data=DataConfig(root=str(root)),
        evaluate=EvaluateConfig(captions_tokenizer="python"),  # without Java
    )
    (run / "export").mkdir()
    (run / "export/adapter.safetensors").write_bytes(b"")
    (run / "export/adapter.json").write_text(json.dumps({"format": FORMAT, "config": to_plain(config)}))
    return run


class Reader(HTMLParser):
    """Texts, pictures and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_page_holds_pictures_and_texts_and_nothing_from_outside(run: Path) -> None:
    assert run_gallery([str(run), "--task", "colours", "--right", "2", "--wrong", "9"]) == 0
    found = Reader((run / "gallery/colours.html").read_text(encoding="utf-8"))
    assert "script" not in found.tags and "b" not in found.tags and "link" not in found.tags
    assert found.texts.count(EVIL) == 3 and "what <b>colour</b> 4?" in found.texts
    assert "Right (3 of 6 items)" in found.texts and "Wrong (3 of 6 items)" in found.texts
    assert len(found.sources) == 5 and all(s.startswith("data:image/png;base64,") for s in found.sources)
    wrong = [Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))).getpixel((5, 5)) for s in found.sources[2:]]
    assert sorted(wrong) == sorted([(0, 0, 0), (255, 255, 255), (255, 255, 0)])  # their own pictures
    assert any("accuracy 50.00" in text for text in found.texts)


def test_what_is_drawn_hangs_on_the_seed_alone(run: Path, tmp_path: Path) -> None:
    def page(seed: int) -> str:
        file = tmp_path / "g.html"
        arguments = ["--task", "colours", "--right", "1", "--wrong", "1", "--seed", str(seed), "--out", str(file)]
        run_gallery([str(run), *arguments])
        return file.read_text()

    assert page(0) == page(0) and len({re.sub("seed [0-9]+", "", page(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("task", ["colours", "hats", "walls", "moving"])
def test_a_sheet_for_documents(task: str, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / f"{task}.png"
    run_gallery([str(run), "--task", task, "--out", str(file)])
    sheet = Image.open(file)
    colours = {colour for _, colour in sheet.getcolors(2**24)}
    green, red = (tuple(bytes.fromhex(c[1:])) for c in (RIGHT, WRONG))
    assert {green, red} <= colours and sheet.width > 1000
    assert ((0, 128, 128) if task == "moving" else (255, 0, 0)) in colours


def test_choices_frames_and_captions(run: Path) -> None:
    for task in ("hats", "moving", "walls"):
        run_gallery([str(run), "--task", task])
    pages = {p.stem: Reader(p.read_text()) for p in (run / "gallery").iterdir()}
    assert "a0: a hat" in pages["hats"].texts and "a1: a cat" in pages["hats"].texts
    assert len(pages["moving"].sources) == 6 * 3  # three frames a strip
    texts = pages["walls"].texts
    assert "Best tenth (1 of 6 items)" in texts and "Worst tenth (1 of 6 items)" in texts
    assert "a plain red wall outside" in texts and "(a caption)" in texts


def test_another_split_and_a_folder_that_moved(run: Path, tmp_path: Path) -> None:
    write_predictions(run, "colours", {"0": "red"}, "_val")
    run_gallery([str(run), "--task", "colours", "--split", "val"])
    assert "Right (1 of 1 items)" in (run / "gallery/colours_val.html").read_text()
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="'data.root' is .*data, which is no folder"):
        run_gallery([str(run), "--task", "colours"])
    assert run_gallery([str(run), "--task", "colours", f"data.root={tmp_path / 'moved'}"]) == 0


def test_what_is_missing_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: type[Exception], words: str, *arguments: str) -> None:
        with pytest.raises(error, match=words):
            run_gallery([str(run), *arguments])

    fails(ConfigError, "no predictions of task 'colour'.*did you mean 'colours'", "--task", "colour")
    fails(ConfigError, "expected a file of .html or .png, found '.pdf'", "--task", "colours", "--out", "x.pdf")
    fails(ConfigError, "at least one item", "--task", "colours", "--right", "0", "--wrong", "0")
    fails(CheckpointError, r"no predictions of the split 'val'; evaluate it first.*--split val", "--task", "colours", "--split", "val")  # fmt: skip
    with pytest.raises(CheckpointError, match="is no run and no export.*does not exist"):
        run_gallery([str(tmp_path / "none"), "--task", "colours"])
    write_predictions(run, "hats", {"77": "a0"})
    fails(
        DataError,
        "1 of 1 predictions .* are of items that the split 'test' .* does not have, e.g. '77'",
        "--task",
        "hats",
    )
    (run / "predictions/walls.jsonl").write_text('{"uid": "0", "text": "x"}\n{"uid": 1}\n')
    fails(DataError, r"walls\.jsonl, row 2: expected a prediction", "--task", "walls")
    (tmp_path / "data/colours/pictures/lime.png").unlink()
    assert main(["gallery", str(run), "--task", "colours"]) == 2
    assert "lime" in capsys.readouterr().err


def test_lines_fit_into_their_columns() -> None:
    font = ImageFont.load_default(14)
    text = f"both images contain the same number of {'m' * 90} objects iiiii"
    lines = wrapped(text, font, 120)
    assert all(0 < font.getlength(line) <= 120 for line in lines) and len(lines) > 8
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped("m", font, 1) == ["m"] and wrapped("", font, 50) == []
