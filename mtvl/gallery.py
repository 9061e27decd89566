"""`mtvl gallery`: right and wrong answers of an evaluated run, with their pictures, for a person to look at."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtvl.backbones import BACKBONES
from mtvl.cards import Card, Group, page, sheet
from mtvl.config import RunConfig
from mtvl.data.shown import shown_pictures
from mtvl.errors import CheckpointError, ConfigError, DataError, near_names
from mtvl.export import find_export, read_config
from mtvl.tasks import load_task
from mtvl.types import Example, Prediction, Scores
from mtvl.workspace import data_root

FORMS = (".html", ".png")
RIGHT_FROM = 50.0  # score of an item that counts as right, of 100
GRADED = ("cider",)  # primary metrics without right and wrong: the best and the worst tenth are shown
TENTH = 0.1
NO_SUBTITLES = "[Subs]"  # the mark before subtitles, where there are none
MOST_FRAMES, MOST_TEXT, MOST_TRUTHS = 8, 300, 3


@dataclass(frozen=True)
class Choice:
    """What to show: how many items of each kind, drawn by `seed`."""

    right: int = 8
    wrong: int = 8
    seed: int = 0


def gallery(
    run: Path, task: str, *, split: str = "test", out: Path | None = None, choice: Choice | None = None,
    overrides: Sequence[str] = (), say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Write right and wrong answers of `task` in an evaluated run as one file (.html or .png); returns its path.

    Raises CheckpointError where there is no run or no predictions, ConfigError for a task that was not evaluated or a form
    that is not known, DataError where predictions, rows and pictures do not belong together or pictures are gone.
    """
    choice = choice or Choice()
    if choice.right < 0 or choice.wrong < 0 or not choice.right + choice.wrong:
        raise ConfigError(f"nothing to show: --right {choice.right} and --wrong {choice.wrong}; give at least one item")
    folder = run if (run / "export").is_dir() else find_export(run)
    file = out or folder / "gallery" / f"{task}{'' if split == 'test' else f'_{split}'}.html"
    if file.suffix.lower() not in FORMS:
        raise ConfigError(
            f"--out {file}: expected a file of {' or '.join(FORMS)}, found {file.suffix or 'no suffix'!r}"
        )
    predictions = read_predictions(folder, task, split)
    config, _ = read_config(find_export(run), overrides)
    found = _task(config, task, say)
    examples = _examples(found, split, predictions, folder)
    scores = found.score(list(predictions.values()), list(examples.values()))
    groups = [
        Group(f"{title} ({len(uids):,} of {len(scores.per_item):,} items)", tuple(
            make_card(examples[uid], predictions[uid], scores, config, found.decoding.choices, is_right=is_right)
            for uid in drawn(uids, number, f"{choice.seed} {task} {split}")
        ))
        for title, uids, number, is_right in _parts(scores, choice) if number
    ]  # fmt: skip
    title = f"{task}, {split}: {scores.primary} {scores.metrics[scores.primary]:.2f}"
    notes = [f"{run.resolve().name}, {len(scores.per_item):,} scored items; drawn at random with seed {choice.seed}."]
    if config.data.text_only:
        notes.append("Text-only run: the model saw none of these pictures.")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".png":
        sheet(title, notes, groups).save(file)
    else:
        file.write_text(page(title, notes, groups), encoding="utf-8")
    return file


def read_predictions(folder: Path, task: str, split: str) -> dict[str, Prediction]:
    """What `evaluate` wrote for a task, by uid; CheckpointError or ConfigError where it wrote nothing."""
    kept = folder / ("predictions" if split == "test" else f"predictions_{split}")
    if not kept.is_dir():
        made = sorted(p.name.removeprefix("predictions_") for p in folder.glob("predictions_*") if p.is_dir())
        others = f" (there are some of {', '.join(made)})" if made else ""
        raise CheckpointError(
            f"{folder} has no predictions of the split {split!r}{others}; evaluate it first: launch/evaluate.py "
            f"--checkpoint {folder}{'' if split == 'test' else f' --split {split}'}"
        )
    file = kept / f"{task}.jsonl"
    if not file.is_file():
        raise ConfigError(
            f"no predictions of task {task!r} in {kept}; {near_names(task, (p.stem for p in kept.glob('*.jsonl')))}"
        )
    predictions: dict[str, Prediction] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            predictions[row["uid"]] = Prediction(row["uid"], row["text"], row.get("scores", {}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"expected a prediction with uid and text ({type(error).__name__}: {error}); evaluate again",
                            file=file, row=number) from None  # fmt: skip
    if not predictions:
        raise DataError("expected predictions, found none; evaluate again", file=file)
    return predictions


def _task(config: RunConfig, name: str, say: Callable[[str], None]) -> Any:
    family = BACKBONES.load(str(config.backbone.get("name", ""))).family
    return load_task(
        name, root=data_root(config, say), family=family, evaluate=config.evaluate, overlay=config.task.get(name)
    )


def _examples(task: Any, split: str, predictions: Mapping[str, Prediction], folder: Path) -> dict[str, Example]:
    """The examples that were predicted, by uid, in file order."""
    rows = {example.uid: example for example in task.examples(split)}
    foreign = [uid for uid in predictions if uid not in rows]
    if foreign:
        raise DataError(
            f"{len(foreign)} of {len(predictions)} predictions in {folder} are of items that the split {split!r} of task "
            f"{task.name!r} does not have, e.g. {foreign[0]!r}; set 'data.root' to the data that were evaluated"
        )
    examples = {uid: example for uid, example in rows.items() if uid in predictions}
    if not all(example.references for example in examples.values()):
        raise DataError(
            f"the split {split!r} of task {task.name!r} has no public answers: nothing is right or wrong in it"
        )
    return examples


def _parts(scores: Scores, choice: Choice) -> list[tuple[str, list[str], int, bool]]:
    """(title, uids, number to show, is right) of both groups."""
    items = scores.per_item
    if scores.primary in GRADED:
        order = sorted(items, key=lambda uid: (-items[uid], uid))
        tenth = max(1, round(TENTH * len(order)))
        return [("Best tenth", order[:tenth], choice.right, True), ("Worst tenth", order[-tenth:], choice.wrong, False)]
    right = [uid for uid in items if items[uid] >= RIGHT_FROM]
    wrong = [uid for uid in items if items[uid] < RIGHT_FROM]
    return [("Right", right, choice.right, True), ("Wrong", wrong, choice.wrong, False)]


def drawn(uids: Sequence[str], number: int, seed: str) -> list[str]:
    """At most `number` of `uids`: a pure function of the set and the seed."""
    pool = sorted(uids)
    return random.Random(seed).sample(pool, min(number, len(pool)))


def make_card(
    example: Example, prediction: Prediction, scores: Scores, config: RunConfig, names: Sequence[str], *, is_right: bool
) -> Card:
    """Pictures and lines of one item. `names` are what the task calls an example's own choices."""
    pictures = shown_pictures(example.visual, config.data.frame_seconds, config.data.video_decoder)
    if not pictures:
        raise DataError(f"item {example.uid!r} has stored features and no picture to show; set 'data.root' to a folder that "
                        "holds the pictures or videos themselves")  # fmt: skip
    if len(pictures) > MOST_FRAMES:  # evenly over the video
        pictures = [pictures[i * len(pictures) // MOST_FRAMES] for i in range(MOST_FRAMES)]
    own = dict(zip(names, example.choices, strict=True)) if example.choices else {}
    truths = sorted(example.targets, key=lambda t: -t.weight)[:MOST_TRUTHS]
    own_text = (s.text for s in example.segments if s.name != "prompt" and s.text.strip() != NO_SUBTITLES)
    lines = [
        ("item", example.uid),
        ("asked", _short("".join(own_text)) or "(a caption)"),
        ("answer", _short(f"{prediction.text}: {own[prediction.text]}" if own else prediction.text) or "(nothing)"),
        ("truth", _short(" | ".join(t.text if t.weight == 1 else f"{t.text} ({t.weight:g})" for t in truths))),
        ("score", f"{scores.per_item[example.uid]:.0f}"),
    ]
    if prediction.scores:
        best = sorted(prediction.scores.items(), key=lambda item: -item[1])
        lines.append(("log-likelihood", ", ".join(f"{name} {value:.2f}" for name, value in best)))
    return Card(example.uid, tuple(pictures), tuple(lines), scores.per_item[example.uid], is_right)


def _short(text: str) -> str:
    """One line of at most `MOST_TEXT` characters: subtitles fill pages."""
    text = " ".join(text.split())
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"
