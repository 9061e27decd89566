"""The four video tasks: examples from small folders in VALUE's layout, and scores that can be worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtvl.config import EvaluateConfig
from mtvl.data.collate import Collator
from mtvl.data.formats.rows import SubtitleLine
from mtvl.errors import ConfigError, DataError
from mtvl.tasks import TASKS_DIR, load_task
from mtvl.tasks.base import BaseTask, overlaps
from mtvl.tasks.baselines import constant_baseline
from mtvl.types import KEEP, Example, Limits, Prediction, Target

SAID = [(0.0, 2.0, " Ann : Hello."), (2.0, 4.0, "Bob : No!"), (5.0, 6.5, "Ann : Bye."), (9.0, 9.5, " ")]


def write(file: Path, rows: Sequence[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def subtitles(root: Path, group: str, *names: str) -> None:
    said = [{"start": start, "end": end, "text": text} for start, end, text in SAID]
    write(root / f"subtitles/{group}_subtitles.jsonl", [{"vid_name": name, "sub": said} for name in names])


def video(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def question(uid: int, answer: int | None, **more: Any) -> dict[str, Any]:
    choices = {f"a{i}": text for i, text in enumerate(("A cup.", "a hat", "Why?", "Dr. No", "tea"))}
    row = {
        "qid": uid,
        "q": "What falls?",
        **choices,
        "ts": "1.5-4.5",
        "vid_name": "clip_1",
        "show_name": "Castle",
        **more,
    }
    return row if answer is None else {**row, "answer_idx": answer}


def tvqa(root: Path) -> BaseTask:
    write(root / "tvqa/tvqa_train.jsonl", [question(1, 4), question(2, 4, ts="nan-nan")])
    write(root / "tvqa/tvqa_val.jsonl", [question(3, 0), question(4, 1), question(5, 4, show_name="Friends")])
    write(root / "tvqa/tvqa_test_release.jsonl", [question(6, None)])
    subtitles(root, "tv", "clip_1")
    video(root, "videos/tv/clip_1.mp4")
    return load_task("tvqa", root=root)


def how2qa(root: Path) -> BaseTask:
    for split in ("train", "val", "test_public"):
        rows = [question(uid, uid % 4, held_out=uid == 2) for uid in (1, 2, 3)]
        rows = [{k: v for k, v in row.items() if k not in ("a4", "show_name")} for row in rows]
        write(root / f"how2qa/how2qa_{split}_release.jsonl", rows)
    subtitles(root, "how2", "clip_1")
    video(root, "vis_features/how2/clip-vit/clip_1.npz")
    return load_task("how2qa", root=root)


def moment(uid: int, *captions: str, **more: Any) -> dict[str, Any]:
    descs = [{"desc": text, "desc_id": 10 * uid + i} for i, text in enumerate(captions)]
    return {"clip_id": uid, "vid_name": f"clip_{uid}", "duration": 12, **({"descs": descs} if descs else {}), **more}


def tvc(root: Path) -> BaseTask:
    write(root / "tvc/tvc_train_release.jsonl", [moment(1, "a red ball rolls", "a ball goes left", ts=[1.5, 4.5])])
    val = [
        moment(1, "a brown dog runs on the grass", "the dog runs", ts=[1.5, 4.5]),
        moment(2, "a cat sleeps on the old sofa", "caf\u00e9", ts=[0, 12]),
    ]
    write(root / "tvc/tvc_val_release.jsonl", val)
    write(root / "tvc/tvc_test_release.jsonl", [moment(1, ts=[1.5, 4.5])])
    subtitles(root, "tv", "clip_1", "clip_2")
    video(root, "videos/tv/clip_1/0001.jpg", "videos/tv/clip_2.webm")
    return load_task("tvc", root=root, evaluate=EvaluateConfig(captions_tokenizer="python"))


def yc2c(root: Path) -> BaseTask:
    for split in ("train", "val", "test"):
        write(
            root / f"yc2c/yc2c_{split}_release.jsonl", [moment(1, "add onions to it"), moment(2, "stir the whole pan")]
        )
    subtitles(root, "yc2", "clip_1")
    video(root, "videos/yc2/clip_1.4x1.png", "videos/yc2/clip_2.mp4")
    return load_task("yc2c", root=root, evaluate=EvaluateConfig(captions_tokenizer="python"))


def text_of(example: Example) -> str:
    return "".join(segment.text for segment in example.segments)


def variant(root: Path, name: str, **changes: Any) -> BaseTask:
    """The task with other values in its file."""
    values = yaml.safe_load((TASKS_DIR / f"{name}.yaml").read_text())
    for key, change in changes.items():
        values[key] = {**values[key], **change} if isinstance(change, dict) else change
    folder = root / "tasks"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return load_task(name, root=root, tasks_dir=folder)


def predict(examples: Sequence[Example], *texts: str) -> list[Prediction]:
    return [Prediction(e.uid, t) for e, t in zip(examples, texts, strict=True)]


def test_a_question_reads_as_in_the_reference(tmp_path: Path) -> None:
    first, without_span = tvqa(tmp_path).examples("train")
    choices = "[Choices] a0: A cup. a1: a hat. a2: Why? a3: Dr. No. a4: tea."
    assert text_of(first) == f"[Subs] Ann : Hello. Bob : No! [Q] What falls? [TS] (1.5-4.5) {choices} tvqa: "
    assert [s.name for s in first.segments] == ["subtitles", "question", "time_span", "choices", "prompt"]
    assert [s.priority == KEEP for s in first.segments] == [False, True, True, True, True]
    assert (first.visual.video, first.visual.span) == (str(tmp_path / "videos/tv/clip_1.mp4"), (1.5, 4.5))
    assert first.visual.images == ()
    assert first.targets == (Target("tea"),)
    assert first.references == {"answer": "a4", "group": "Castle"}
    assert text_of(without_span) == f"[Subs] Ann : Hello. Bob : No! Ann : Bye. [Q] What falls? {choices} tvqa: "
    assert without_span.visual.span is None


def test_the_whole_video_as_in_the_reference(tmp_path: Path) -> None:
    tvqa(tmp_path)
    task = variant(tmp_path, "tvqa", video={"span": "text", "subtitles": "all"})
    first, _ = task.examples("train")
    assert text_of(first).startswith(
        "[Subs] Ann : Hello. Bob : No! Ann : Bye. [Q] What falls? [TS] (1.5-4.5) [Choices]"
    )
    assert first.visual.span is None


@pytest.mark.parametrize(
    ("line", "is_inside"),
    [((0, 1.5), False), ((0, 1.6), True), ((4.4, 9), True), ((4.5, 9), False), ((2, 2), True), ((0, 9), True),
     ((1.5, 1.5), True), ((4.5, 4.5), False)],
)  # fmt: skip
def test_lines_inside_a_span(line: tuple[float, float], is_inside: bool) -> None:
    assert overlaps(SubtitleLine(*line, "x"), (1.5, 4.5)) is is_inside


def test_no_line_inside_the_span(tmp_path: Path) -> None:
    tvqa(tmp_path)
    write(tmp_path / "tvqa/tvqa_train.jsonl", [question(1, 4, ts="7-8.5")])
    (example,) = load_task("tvqa", root=tmp_path).examples("train")
    assert text_of(example).startswith("[Subs] [Q] What falls? [TS] (7-8.5) [Choices]")


class Words:
    """One id a word."""

    pad_id, eos_id, num_special = 0, 1, 1

    def __init__(self) -> None:
        self.words: list[str] = ["", "</s>"]

    def encode(self, text: str) -> list[int]:
        self.words += sorted(set(text.split()) - set(self.words))
        return [self.words.index(word) for word in text.split()]

    def wrap(self, ids: Sequence[int]) -> list[int]:
        return [*ids, self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[i] for i in ids if i > 1)


def test_over_the_limit_subtitles_are_lost_and_nothing_else(tmp_path: Path) -> None:
    (example, _) = tvqa(tmp_path).examples("train")
    whole = text_of(example).split()
    example = dataclasses.replace(example, visual=dataclasses.replace(example.visual, video=""))
    for lost in (1, 3, 5):
        tokenizer = Words()
        limits = {"tvqa": Limits(source_tokens=len(whole) - lost + 1)}
        batch = Collator(tokenizer, None, limits).collate("tvqa", [example], training=False)
        kept = tokenizer.decode(batch.source_ids[0].tolist()).split()
        assert kept == whole[: 7 - lost] + whole[7:]  # "[Subs] Ann : Hello. Bob : No!" are seven


def test_question_scores(tmp_path: Path) -> None:
    task = tvqa(tmp_path)
    examples = task.examples("val")
    assert task.decoding.mode == "rank"
    scores = task.score(predict(examples, "a0", "a2", "a4"), examples)
    expected = {"accuracy": 200 / 3, "accuracy/Castle": 50, "accuracy/Friends": 100}
    assert scores.metrics == pytest.approx(expected)
    assert scores.per_item == {"3": 100, "4": 0, "5": 100}
    with pytest.raises(DataError, match="can be predicted but not scored"):
        task.score([Prediction("6", "a0")], task.examples("test"))


def test_the_held_out_part_is_scored_apart(tmp_path: Path) -> None:
    task = how2qa(tmp_path)
    examples = task.examples("test")
    assert [e.references["answer"] for e in examples] == ["a1", "a2", "a3"]
    assert examples[0].visual.video == str(tmp_path / "vis_features/how2/clip-vit/clip_1.npz")
    metrics = task.score(predict(examples, "a1", "a1", "a1"), examples).metrics
    expected = {"accuracy": 100 / 3, "accuracy/held_out": 0, "accuracy/not_held_out": 50}
    assert metrics == pytest.approx(expected)


def test_ranked_answers_are_learned_by_their_words_and_answered_by_name(tmp_path: Path) -> None:
    task = tvqa(tmp_path)
    (example, *_) = examples = task.examples("val")
    assert len(example.choices) == 5 and example.references["answer"] == "a0"
    assert example.targets == (Target(example.choices[0]),)
    constant = constant_baseline(task, examples, examples)
    assert constant.metrics["accuracy"] == pytest.approx(100 / 3)  # one of a0, a1, a4


def test_generation_as_the_reference_does_it(tmp_path: Path) -> None:
    tvqa(tmp_path)
    task = load_task("tvqa", root=tmp_path, overlay={"decoding": {"mode": "generate"}})
    assert not any(e.choices for e in task.examples("val"))
    assert (task.decoding.mode, task.decoding.num_beams, task.decoding.max_tokens) == ("generate", 5, 20)
    examples = task.examples("val")
    assert [e.targets for e in examples] == [(Target("a0"),), (Target("a1"),), (Target("a4"),)]
    assert task.score(predict(examples, "a0", "a hat", ""), examples).per_item == {"3": 100, "4": 0, "5": 0}


def test_the_number_of_answers_is_that_of_the_task(tmp_path: Path) -> None:
    tvqa(tmp_path)
    row = question(2, 0)
    del row["a4"]
    write(tmp_path / "tvqa/tvqa_train.jsonl", [question(1, 4), row])
    with pytest.raises(DataError, match=r"line 2: expected 5 answers to choose from \(a0, a1, a2, a3, a4\), found 4"):
        load_task("tvqa", root=tmp_path).examples("train")
    with pytest.raises(ConfigError, match=r"'decoding\.choices' with a name for each answer"):
        variant(tmp_path, "tvqa", decoding={"mode": "generate", "choices": []})


def test_moments(tmp_path: Path) -> None:
    task = tvc(tmp_path)
    train, val = task.examples("train"), task.examples("val")
    assert [(e.uid, e.targets) for e in train] == [
        ("1_10", (Target("a red ball rolls"),)),
        ("1_11", (Target("a ball goes left"),)),
    ]
    assert text_of(train[0]) == "[Subs] Ann : Hello. Bob : No! [TS] (1.5-4.5) tvc: "
    assert (train[0].visual.video, train[0].visual.span) == (str(tmp_path / "videos/tv/clip_1"), (1.5, 4.5))
    assert [(e.uid, len(e.targets), e.references["captions"][0]) for e in val] == [
        ("1", 2, "a brown dog runs on the grass"),
        ("2", 2, "a cat sleeps on the old sofa"),
    ]
    (hidden,) = task.examples("test")
    assert (hidden.targets, hidden.references) == ((), {})
    with pytest.raises(DataError, match="can be predicted but not scored"):
        task.score([Prediction("1", "x")], [hidden])


def test_steps_without_a_span(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = yc2c(tmp_path)
    with caplog.at_level(logging.WARNING):
        first, second = task.examples("val")
    assert text_of(first) == "[Subs] Ann : Hello. Bob : No! Ann : Bye. yc2c: "
    assert (text_of(second), second.visual.span) == ("[Subs] yc2c: ", None)
    assert "1 of 2 videos of split val have no subtitles" in caplog.text
    assert task.source.without_subtitles == {"val": (2, 1)}
    assert first.visual.video.endswith("clip_1.4x1.png")


def test_every_reference_of_a_moment_counts(tmp_path: Path) -> None:
    task = tvc(tmp_path)
    examples = task.examples("val")
    perfect = task.score(predict(examples, "a brown dog runs on the grass", "a cat sleeps on the old sofa"), examples)
    assert perfect.primary == "cider"
    assert perfect.metrics["bleu_4"] == pytest.approx(100, abs=0.01)
    second = task.score(predict(examples, "the dog runs", "a cat sleeps on the old sofa"), examples)
    assert second.metrics["rouge_l"] == pytest.approx(100, abs=0.01)


def test_the_held_out_moments_are_scored_apart(tmp_path: Path) -> None:
    tvc(tmp_path)
    texts = ("a brown dog runs on the grass", "a cat sleeps on the old sofa", "two red buses wait")
    val = [moment(i % 2 + 1, text, ts=[0, 12], held_out=i > 0, clip_id=i) for i, text in enumerate(texts)]
    write(tmp_path / "tvc/tvc_val_release.jsonl", val)
    task = load_task("tvc", root=tmp_path, evaluate=EvaluateConfig(captions_tokenizer="python"))
    examples = task.examples("val")
    scores = task.score(predict(examples, texts[0], texts[1], "stock prices"), examples)
    assert scores.metrics["cider/not_held_out"] == pytest.approx(scores.per_item["0"])
    assert scores.metrics["cider/held_out"] == pytest.approx((scores.per_item["1"] + scores.per_item["2"]) / 2)
    assert scores.per_item["1"] > scores.per_item["2"] == 0


def test_only_ascii_is_scored_where_the_task_says_so(tmp_path: Path) -> None:
    task = tvc(tmp_path)
    assert task.config.ascii_only
    examples = task.examples("val")
    texts = ("the dog runs", "caf")  # "cafe" with an accent loses its last letter
    assert task.score(predict(examples, *texts), examples).metrics["rouge_l"] == pytest.approx(100, abs=0.01)
    plain = variant(tmp_path, "tvc", ascii_only=False)
    plain.evaluate = EvaluateConfig(captions_tokenizer="python")
    assert plain.score(predict(examples, *texts), examples).metrics["rouge_l"] < 60


def test_constant_baselines(tmp_path: Path) -> None:
    task = tvqa(tmp_path / "a")
    assert constant_baseline(task, task.examples("train"), task.examples("val")).metrics["accuracy"] == pytest.approx(
        100 / 3
    )
    task = yc2c(tmp_path / "b")
    assert constant_baseline(task, task.examples("train"), task.examples("val")).primary == "cider"


def test_the_layout_of_vl_adapter(tmp_path: Path) -> None:
    ann = tmp_path / "video/ann"
    for name, uid in (("train", 1), ("val", 2), ("test_public", 3), ("test_release", 4)):
        write(ann / f"tvqa/tvqa_{name}.jsonl", [question(uid, 0)])
    said = [{"vid_name": "clip_1", "sub": []}]
    write(ann / "tv_subtitles.jsonl", said)
    video(tmp_path, "video/vis_features/tv/clip-vit/clip_1.npz")
    task = load_task("tvqa", root=tmp_path)
    assert [e.uid for e in task.examples("test")] == ["3", "4"]
    assert task.examples("train")[0].visual.video.endswith("video/vis_features/tv/clip-vit/clip_1.npz")
    (ann / "tvqa/tvqa_test_public.jsonl").unlink()
    assert [e.uid for e in load_task("tvqa", root=tmp_path).examples("test")] == ["4"]


def test_a_missing_video_stops_the_split(tmp_path: Path) -> None:
    tvc(tmp_path)
    (tmp_path / "videos/tv/clip_2.webm").unlink()
    with pytest.raises(DataError, match=r"expected 2 videos, found 1, missing 1, e\.g\. videos/tv/clip_2 "):
        load_task("tvc", root=tmp_path).examples("val")


def test_rows_and_patterns_belong_together(tmp_path: Path) -> None:
    tvqa(tmp_path)
    files = {"train": {"rows": ["tvqa/tvqa_train.jsonl"]}}
    source = {"format": "value_qa", "files": files, "pictures": ["videos/tv/{vid_name}"]}
    values = {"kind": "caption", "primary": "cider", "sources": [source]}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/toy.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="rows of this format have videos, found patterns of pictures"):
        load_task("toy", root=tmp_path, tasks_dir=tmp_path / "tasks").examples("train")
