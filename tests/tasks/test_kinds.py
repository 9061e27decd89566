"""The four kinds: examples from small folders, and scores that can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mtvl.config import EvaluateConfig
from mtvl.errors import DataError
from mtvl.tasks import load_task
from mtvl.tasks.base import BaseTask
from mtvl.tasks.baselines import central_caption, constant_baseline, heaviest_answer
from mtvl.types import KEEP, Example, Prediction, Segment, Target, Visual

ALL_YES = ["yes"] * 10
MIXED = ["red"] * 6 + ["dark red"] * 2 + ["blue", "the blue"]


def write(root: Path, name: str, content: Any) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    lines = content if name.startswith("nlvr2/") else [content]
    (root / name).write_text("\n".join(json.dumps(line) for line in lines))


def picture(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def predict(examples: Sequence[Example], *texts: str) -> list[Prediction]:
    return [Prediction(e.uid, t) for e, t in zip(examples, texts, strict=True)][::-1]  # any order will do


def vqa(root: Path) -> BaseTask:
    for split, image in (("train", 1), ("val", 2)):
        questions = [{"question_id": image * 10 + i, "image_id": image, "question": f"Q{i}?"} for i in (0, 1)]
        write(root, f"vqa/v2_OpenEnded_mscoco_{split}2014_questions.json", {"questions": questions})
        annotations = [
            {**q, "answers": [{"answer": a, "answer_id": n} for n, a in enumerate(answers)], "answer_type": kind}
            for q, answers, kind in zip(questions, (ALL_YES, MIXED), ("yes/no", "other"), strict=True)
        ]
        write(root, f"vqa/v2_mscoco_{split}2014_annotations.json", {"annotations": annotations})
        picture(root, f"images/{split}2014/COCO_{split}2014_{image:012d}.png")
    return load_task("vqa", root=root)


def gqa_entry(answer: str, structural: str, entailed: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
    types = {"structural": structural, "semantic": "attr", "detailed": "x"}
    return {
        "question": f"Is it {answer}?", "imageId": "n1", "answer": answer, "isBalanced": True, "types": types,
        "groups": {"global": None}, "semantic": [], "entailed": list(entailed), **fields,
    }  # fmt: skip


def gqa(root: Path) -> BaseTask:
    everything = {
        "1": gqa_entry("red", "query", ["2", "3"]),
        "2": gqa_entry("yes", "verify"),
        "3": gqa_entry("no", "verify", isBalanced=False),
    }
    balanced = {uid: q for uid, q in everything.items() if q["isBalanced"]}
    choices = {uid: {"valid": ["red", "blue", "yes", "no"], "plausible": ["red", "yes"]} for uid in balanced}
    for split in ("train", "val"):
        write(root, f"gqa/{split}_balanced_questions.json", balanced)
    write(root, "gqa/testdev_all_questions.json", everything)
    write(root, "gqa/testdev_choices.json", choices)
    picture(root, "gqa/images/n1.jpg")
    return load_task("gqa", root=root)


def nlvr2(root: Path) -> BaseTask:
    for name, split in (("train", "train"), ("dev", "dev"), ("test1", "test1")):
        rows = [
            {"identifier": f"{split}-5-{pair}-0", "sentence": "Two dogs.", "label": label}
            for pair, label in ((0, "True"), (1, "False"))
        ] + [{"identifier": f"{split}-6-0-0", "sentence": "One cat.", "label": "True"}]
        write(root, f"nlvr2/{name}.json", rows)
        picture(root, *(f"nlvr2/images/{split}/{split}-{s}-img{i}.png" for s in ("5-0", "5-1", "6-0") for i in (0, 1)))
    return load_task("nlvr2", root=root)


def coco(root: Path) -> BaseTask:
    texts = {
        "train": ["a small brown dog runs", "a dog runs on the grass"],
        "restval": ["a dog plays on the grass", "two red buses wait"],
        "val": ["a brown dog runs on the grass", "the dog runs"],
        "test": ["a cat sleeps on the old sofa", "a cat on a sofa"],
    }
    images = [
        {"filepath": "val2014", "filename": f"{i}.jpg", "cocoid": 100 + i, "imgid": i, "split": split,
         "sentences": [{"raw": f" {t} ", "sentid": 10 * i + n} for n, t in enumerate(captions)]}
        for i, (split, captions) in enumerate(texts.items())
    ]  # fmt: skip
    write(root, "coco/dataset_coco.json", {"images": images})
    picture(root, *(f"images/val2014/{i}.jpg" for i in range(4)))
    return load_task("coco", root=root, evaluate=EvaluateConfig(captions_tokenizer="python"))


TOYS = {"vqa": vqa, "gqa": gqa, "nlvr2": nlvr2, "coco": coco}


def test_vqa_examples(tmp_path: Path) -> None:
    first, second = vqa(tmp_path).examples("train")
    assert first.uid == "10"
    assert [(s.name, s.text) for s in first.segments] == [("prompt", "vqa: "), ("question", "Q0?")]
    assert first.segments[0].priority == KEEP > first.segments[1].priority  # the end of the question goes first
    assert first.visual.images == (str(tmp_path / "images/train2014/COCO_train2014_000000000001.png"),)
    assert first.targets == (Target("yes", 1.0),)
    assert {t.text: t.weight for t in second.targets} == {"red": 1.0, "dark red": 0.6, "blue": 0.6}
    assert second.references["answer_type"] == "other"


def test_vqa_scores(tmp_path: Path) -> None:
    task = vqa(tmp_path)
    examples = task.examples("val")
    scores = task.score(predict(examples, "Yes", "dark red"), examples)
    # "Yes" against ten times "yes": compared raw since 2021, normalised before. "dark red" has 2 of 10.
    assert scores.metrics["accuracy"] == pytest.approx((0 + 60) / 2)
    assert scores.metrics["accuracy_official_before_2021"] == pytest.approx((100 + 60) / 2)
    assert scores.metrics["accuracy_always_normalised"] == pytest.approx((100 + 60) / 2)
    assert scores.per_item == {"20": 0, "21": pytest.approx(60)}
    assert scores.metrics["accuracy/other"] == pytest.approx(60)


def test_karpathy_vqa(tmp_path: Path) -> None:
    name = "COCO_val2014_000000000003"
    rows = [
        {"question_id": 1, "img_id": name, "sent": "What?", "label": {"cat": 1, "kitty": 0.3, "dog": 0}},
        {"question_id": 2, "img_id": name, "sent": "Why?", "label": {}},
    ]
    answers = [{"question_id": q, "answers": ["cat"] * 9 + ["kitty"]} for q in (1, 2, 3)]
    for split in ("train", "val", "test"):
        write(tmp_path, f"vqa/karpathy_{split}.json", rows)
    write(tmp_path, "vqa/v2_mscoco_train2014_annotations.json", {"annotations": answers[:1]})
    write(tmp_path, "vqa/v2_mscoco_val2014_annotations.json", {"annotations": answers[1:]})
    picture(tmp_path, f"images/val2014/{name}.jpg")
    task = load_task("vqa", root=tmp_path)
    assert task.source.config.format == "vqa_karpathy"
    first, second = task.examples("train")
    assert first.targets == (Target("cat", 1.0), Target("kitty", 0.3))
    assert second.targets == (Target("", 0.0),)
    examples = task.examples("test")
    assert task.score(predict(examples, "cat", "dog"), examples).metrics["accuracy"] == 50


def test_the_hidden_test_answers_of_vqa(tmp_path: Path) -> None:
    task = vqa(tmp_path)
    with pytest.raises(DataError, match="test answers of the real VQA v2 are not public.*Karpathy"):
        task.examples("test")
    write(tmp_path, "vqa/v2_OpenEnded_mscoco_test2015_questions.json",
          {"questions": [{"question_id": 1, "image_id": 7, "question": "Q?"}]})  # fmt: skip
    picture(tmp_path, "images/test2015/COCO_test2015_000000000007.jpg")
    (example,) = vqa(tmp_path).examples("test2015")
    assert example.targets == ()
    with pytest.raises(DataError, match="can be predicted but not scored"):
        task.score([Prediction("1", "yes")], [example])


def test_gqa_scores_all_questions_but_counts_balanced_ones(tmp_path: Path) -> None:
    task = gqa(tmp_path)
    examples = task.examples("test")
    assert [e.uid for e in examples] == ["1", "2", "3"]
    assert [e.targets for e in examples] == [(Target("red"),), (Target("yes"),), (Target("no"),)]
    scores = task.score(predict(examples, "red", "blue", "no"), examples)
    expected = {"accuracy": 50, "binary": 0, "open": 100, "consistency": 50, "validity": 100, "plausibility": 50}
    assert {k: scores.metrics[k] for k in expected} == expected
    assert scores.per_item == {"1": 100, "2": 0}


def test_gqa_leaves_out_what_cannot_be_computed(tmp_path: Path) -> None:
    task = gqa(tmp_path)
    examples = task.examples("val")  # no choices file, and question 3 is not among the balanced ones
    assert not {"consistency", "validity"} & task.score(predict(examples, "red", "yes"), examples).metrics.keys()
    (tmp_path / "gqa/testdev_all_questions.json").unlink()
    only_open = {"1": gqa_entry("red", "query", types={"structural": "query", "semantic": "rel", "detailed": None})}
    for split in ("train", "val", "testdev"):
        write(tmp_path, f"gqa/{split}_balanced_questions.json", only_open)
    task = load_task("gqa", root=tmp_path)
    examples = task.examples("val")
    metrics = task.score(predict(examples, "red"), examples).metrics
    assert metrics["accuracy"] == metrics["open"] == 100
    assert not {"binary", "distribution"} & metrics.keys()


def test_gqa_of_vl_adapter_trains_on_both_files(tmp_path: Path) -> None:
    for i, name in enumerate(("train", "valid", "testdev")):
        write(tmp_path, f"GQA/{name}.json", [{"question_id": i, "img_id": "n1", "sent": "Q?", "label": {"no": 1.0}}])
    picture(tmp_path, "VG/VG_100K/n1.jpg")
    task = load_task("gqa", root=tmp_path)
    assert [e.uid for e in task.examples("train")] == ["0", "1"]
    examples = task.examples("test")
    assert task.score(predict(examples, "no"), examples).metrics == {"accuracy": 100}


def test_nlvr2_examples_and_scores(tmp_path: Path) -> None:
    task = nlvr2(tmp_path)
    examples = task.examples("val")
    assert [e.targets[0].text for e in examples] == ["true", "false", "true"]
    assert [Path(p).name for p in examples[1].visual.images] == ["dev-5-1-img0.png", "dev-5-1-img1.png"]
    scores = task.score(predict(examples, "true", "true", "true"), examples)
    assert scores.metrics["accuracy"] == pytest.approx(200 / 3)
    assert scores.metrics["consistency"] == 50


def test_nlvr2_of_vl_adapter(tmp_path: Path) -> None:
    rows = [{"identifier": "test-1-0-0", "img0": "test-1-0-img0", "img1": "test-1-0-img1", "label": 0, "sent": "Two.",
             "uid": "nlvr2_test_0"}]  # fmt: skip
    write(tmp_path, "nlvr/test.json", rows)
    picture(tmp_path, "nlvr/images/test/test-1-0-img0.png", "nlvr/images/test/test-1-0-img1.png")
    (example,) = load_task("nlvr2", root=tmp_path).examples("test")
    assert (example.uid, example.targets) == ("test-1-0-0", (Target("false"),))


def test_coco_has_one_training_example_a_caption(tmp_path: Path) -> None:
    task = coco(tmp_path)
    train, val = task.examples("train"), task.examples("val")
    assert [e.uid for e in train] == ["100_0", "100_1", "101_10", "101_11"]
    assert train[0].targets == (Target("a small brown dog runs"),)
    assert [e.uid for e in val] == ["102"]
    assert val[0].segments == (Segment("prompt", "caption: "),)
    assert val[0].references["captions"] == ("a brown dog runs on the grass", "the dog runs")


def test_coco_scores(tmp_path: Path) -> None:
    task = coco(tmp_path)
    examples = [*task.examples("val"), *task.examples("test")]
    perfect = task.score(predict(examples, "a brown dog runs on the grass", "a cat sleeps on the old sofa"), examples)
    assert perfect.primary == "cider"
    assert perfect.metrics["bleu_4"] == pytest.approx(100, abs=0.01)
    assert perfect.metrics["rouge_l"] == pytest.approx(100, abs=0.01)
    swapped = task.score(predict(examples, "a cat sleeps on the old sofa", "a brown dog runs on the grass"), examples)
    assert perfect.metrics["cider"] > 100 > swapped.metrics["cider"]
    assert sum(perfect.per_item.values()) / 2 == pytest.approx(perfect.metrics["cider"])


@pytest.mark.parametrize("name", sorted(TOYS))
def test_predictions_must_be_those_of_the_examples(name: str, tmp_path: Path) -> None:
    task = TOYS[name](tmp_path)
    examples = task.examples("train")
    predictions = [Prediction(e.uid, "yes") for e in examples]
    assert task.score(predictions, examples).metrics.keys() >= {task.primary}
    faults = {
        "missing 1": predictions[1:],
        "not expected 1": [*predictions, Prediction("other", "yes")],
        "twice 1": [*predictions, predictions[0]],
    }
    for words, wrong in faults.items():
        with pytest.raises(DataError, match=f"one prediction for each of {len(examples)} examples: .*{words}"):
            task.score(wrong, examples)
    with pytest.raises(DataError, match="found none"):
        task.score([], [])
    with pytest.raises(DataError, match="1 repeated"):
        task.score(predictions, [*examples, examples[0]])


@pytest.mark.parametrize("name", sorted(TOYS))
def test_a_missing_picture_stops_the_split(name: str, tmp_path: Path) -> None:
    task = TOYS[name](tmp_path)
    count = len({i for e in task.examples("train") for i in e.visual.images})
    lost = Path(task.examples("train")[0].visual.images[0])
    lost.unlink()
    with pytest.raises(DataError, match=f"expected {count} pictures, found {count - 1}, missing 1.*{lost.stem}"):
        load_task(name, root=tmp_path).examples("train")


def test_training_needs_answers(tmp_path: Path) -> None:
    nlvr2(tmp_path)
    write(tmp_path, "nlvr2/train.json", [{"identifier": "train-5-0-0", "sentence": "Two."}])
    with pytest.raises(DataError, match="expected answers for 1 training examples, found 0, missing 1"):
        load_task("nlvr2", root=tmp_path).examples("train")


def example(uid: str, *targets: tuple[str, float]) -> Example:
    return Example(uid, "t", (), Visual(), tuple(Target(*t) for t in targets))


def test_the_heaviest_answer() -> None:
    rows = [example("1", ("a", 0.3), ("b", 1.0)), example("2", ("a", 0.3)), example("3", ("a", 0.3), ("c", 1.0))]
    assert heaviest_answer(rows) == "b"  # "a" is commoner and lighter, "c" as heavy and later
    with pytest.raises(DataError, match="found none"):
        heaviest_answer([example("1")])


def test_the_central_caption_is_no_outlier() -> None:
    texts = ["a dog runs on the grass", "a dog runs on sand", "a brown dog runs", "two red buses wait", "stock prices"]
    assert central_caption([example(str(i), (t, 1.0)) for i, t in enumerate(texts)]) in texts[:3]


def test_constant_baselines_are_scored_like_a_model(tmp_path: Path) -> None:
    task = vqa(tmp_path / "vqa")
    assert constant_baseline(task, task.examples("train"), task.examples("val")).metrics["accuracy"] == 50
    task = nlvr2(tmp_path / "nlvr2")
    assert constant_baseline(task, task.examples("train"), task.examples("test")).metrics["accuracy"] > 66
    task = coco(tmp_path / "coco")
    both = [*task.examples("val"), *task.examples("test")]
    assert constant_baseline(task, task.examples("train"), both).primary == "cider"
