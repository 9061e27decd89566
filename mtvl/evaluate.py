"""Evaluating one shared checkpoint on several tasks: predictions, scores, intervals, baselines, one table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mtvl import dist
from mtvl.config import RunConfig
from mtvl.data.mixed import mixed_batches
from mtvl.data.skips import SkipLog
from mtvl.engine import Partitioned, start
from mtvl.errors import CheckpointError, ConfigError, DataError
from mtvl.evaluator import Evaluator
from mtvl.export import find_export, load_export, read_config
from mtvl.loader import evaluation_batches
from mtvl.metrics.intervals import bootstrap_interval
from mtvl.report import Progress, table
from mtvl.retrieving import need_heads, needs_whole_weights
from mtvl.tasks.baselines import constant_baseline
from mtvl.types import Example, Prediction, Scores
from mtvl.workspace import Workspace

TEXT_ONLY = "text_only"  # folder of a run in which its text-only baseline is looked for


def evaluate(
    checkpoint: Path, tasks: Sequence[str] = (), *, split: str = "test", out: Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Score a run or export on `tasks` (default: those it was trained on) and write eval.json and the predictions.

    Beside every score stand the number of items, a bootstrap interval, the constant baseline, and the text-only
    baseline when RUN/text_only holds a run that was trained with `data.text_only=true`.
    Returns {task: {metric: value, "num_examples": n, ...}}. CheckpointError for no usable export, ConfigError for tasks that
    it has no parts for and wrong settings, DataError for rows, pictures and videos that cannot be used.
    """
    device = start()
    say = print if dist.is_main() else (lambda _text: None)
    model, config, content = load_export(checkpoint, overrides)
    trained_on = tuple(content["tasks"])
    names = tuple(tasks) or trained_on
    private = [n for n in names if n not in trained_on]
    if model.plan.is_task_private and private:
        raise ConfigError(
            f"no parts for {', '.join(private)} in {checkpoint}: it was trained on {', '.join(trained_on)}"
        )
    baseline, on_both = _text_only_baseline(checkpoint, config, names)
    folder = out.parent if out else (checkpoint if (checkpoint / "export").is_dir() else find_export(checkpoint))
    ending = "" if split == "test" else f"_{split}"  # figures of another split do not replace those of the test
    table_file, predictions = out or folder / f"eval{ending}.json", folder / f"predictions{ending}"

    skips = SkipLog(folder, dist.rank())
    results, per_item = _evaluate_model(
        model, replace(config, tasks=names), split, device, say, skips, predictions, True
    )
    if baseline is not None:
        other, other_config, _ = load_export(baseline, overrides)
        # The same items as above, or the gain would not be paired.
        other_config = replace(
            other_config, tasks=on_both, data=replace(config.data, text_only=True), evaluate=config.evaluate
        )
        say("text-only baseline (the same model, trained and run with the visual input zeroed)")
        shared, other_items = _evaluate_model(other, other_config, split, device, say, skips, None, False)
        for name in (n for n in on_both if n in results):
            results[name]["text_only"] = shared[name]["score"]
            results[name] |= _gain(per_item[name], other_items[name])
    for name in results:
        results[name]["trained_on"] = name in trained_on
        results[name]["split"] = split
    if dist.is_main():
        _write_json(table_file, results)
        print(f"\n{format_results(results)}\n" if results else "\nnothing to score: no task has public answers\n")
        if baseline is None:
            print(
                f"no text-only baseline in {checkpoint / TEXT_ONLY}; train it with the same command and recipe plus\n"
                f"  --run {checkpoint / TEXT_ONLY} data.text_only=true"
            )
        print(f"written: {table_file}")
    return results


def _text_only_baseline(
    checkpoint: Path, config: RunConfig, names: Sequence[str]
) -> tuple[Path | None, tuple[str, ...]]:
    """The baseline's run folder and those of `names` that it was trained on. Checked before the long work begins."""
    folder = checkpoint / TEXT_ONLY
    if config.data.text_only or not (folder / "export" / "adapter.json").is_file():
        return None, ()
    found, content = read_config(folder / "export")
    if not found.data.text_only:
        raise CheckpointError(f"{folder} was not trained with data.text_only=true and is no text-only baseline")
    on_both = tuple(n for n in names if n in content["tasks"])
    return (folder if on_both else None), on_both


def _evaluate_model(
    model: Any,
    config: RunConfig,
    split: str,
    device: Any,
    say: Any,
    skips: SkipLog,
    predictions: Path | None,
    baselines: bool,
) -> tuple[dict[str, dict[str, Any]], dict[str, Mapping[str, float]]]:
    """Predict and score every task of `config`; returns results and per-item primary scores."""
    # Every item is read once, so there is nothing to gain from filling the store on the way.
    config = replace(config, data=replace(config.data, fill="eager"))
    workspace = Workspace(config, model.backbone, tower=model.trained_tower, device=device, say=say, skips=skips)
    for name in (n for n, task in workspace.tasks.items() if task.decoding.mode == "retrieve"):
        _check_retrieval(model, config, name)
    workspace.prepare([(task, split) for task in config.tasks])
    run = Partitioned(model, config).run if config.evaluate.partitioned else None
    evaluator = Evaluator(model.to(device) if run is None else model, workspace.writer, device, run)
    mixed = _predict_mixed(workspace, evaluator, config, split) if config.evaluate.mixed else {}
    results: dict[str, dict[str, Any]] = {}
    items: dict[str, Mapping[str, float]] = {}
    for name, task in workspace.tasks.items():
        examples = workspace.examples(name, split)
        is_public = all(e.references for e in examples)
        is_wanted = baselines and is_public and task.has_constant and dist.is_main()
        constant = _constant(workspace, name, examples) if is_wanted else None
        predicted = mixed[name] if name in mixed else _predict(workspace, evaluator, config, name, split)
        if predictions is not None and dist.is_main():  # before scoring: a split without public answers ends there
            _write_predictions(predictions / f"{name}.jsonl", predicted)
            _write_result_file(predictions.parent / "results", task, predicted, examples, split)
        if not is_public:
            say(f"{name}: predicted, not scored: the split {split!r} has no public answers")
            continue
        scores = evaluator.score(task, examples, predicted)
        results[name] = _result(scores, len(examples), config.evaluate.bootstrap)
        items[name] = scores.per_item
        if constant is not None:
            results[name]["constant"] = constant
    return results, items


def _check_retrieval(model: Any, config: RunConfig, name: str) -> None:
    """EngineError where a retrieval task cannot be answered: before hours are spent on the tasks before it."""
    need_heads(model.backbone, name)
    if config.evaluate.partitioned:
        raise needs_whole_weights(name)


def _predict(
    workspace: Workspace, evaluator: Evaluator, config: RunConfig, name: str, split: str
) -> list[Prediction]:  # fmt: skip
    """Predictions of one task, in batches of its own."""
    task, examples = workspace.tasks[name], workspace.examples(name, split)
    if task.decoding.mode == "retrieve":
        return evaluator.retrieve(task, examples, workspace.collator, config.evaluate.batch, workspace.say)
    progress = Progress(f"evaluate {name}", -(-len(examples) // dist.world_size()), quiet=not dist.is_main())
    ranks = dist.rank(), dist.world_size()
    batches = evaluation_batches(workspace.collator, task, examples, config.evaluate.batch, *ranks)
    return evaluator.predict(task, examples, batches, progress.update)


def _predict_mixed(
    workspace: Workspace, evaluator: Evaluator, config: RunConfig, split: str
) -> dict[str, list[Prediction]]:  # fmt: skip
    """Predictions of all tasks at once, in batches that mix them by example."""
    alone = {n for n, task in workspace.tasks.items() if task.decoding.mode == "retrieve"}  # among all of their split
    examples = {name: workspace.examples(name, split) for name in workspace.tasks if name not in alone}
    count = sum(map(len, examples.values()))
    progress = Progress("evaluate, tasks mixed", -(-count // dist.world_size()), quiet=not dist.is_main())
    pad, ranks = workspace.tokenizer.pad_id, (dist.rank(), dist.world_size())
    batches = mixed_batches(workspace.collator, examples, config.evaluate.batch, pad, *ranks)
    return evaluator.predict_mixed(workspace.tasks, examples, batches, progress.update)


def _result(scores: Scores, num_examples: int, resamples: int) -> dict[str, Any]:
    interval = bootstrap_interval([scores.per_item[k] for k in sorted(scores.per_item)], resamples=resamples)
    return {
        **{k: float(v) for k, v in scores.metrics.items()}, "primary": scores.primary,
        "score": float(scores.metrics[scores.primary]), "num_examples": num_examples,
        "interval": [interval.low, interval.high], "standard_error": interval.standard_error,
    }  # fmt: skip


def _constant(workspace: Workspace, name: str, examples: Sequence[Example]) -> float | None:
    """Primary metric of the best single answer or caption of the training split; None, said aloud, where it has none.

    Whoever only evaluates need not have the training files.
    """
    try:
        scores = constant_baseline(workspace.tasks[name], workspace.examples(name, "train"), examples)
    except DataError as error:
        workspace.say(f"no constant baseline for {name}: {error}")
        return None
    return float(scores.metrics[scores.primary])


def _gain(items: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Paired gain over the text-only baseline and its standard error, from the items' primary scores."""
    differences = np.array([items[k] - other[k] for k in sorted(items)])
    error = float(differences.std(ddof=1) / np.sqrt(len(differences))) if len(differences) > 1 else 0.0
    return {"gain": float(differences.mean()), "gain_standard_error": error}


def _write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"uid": p.uid, "text": p.text, **({"scores": dict(p.scores)} if p.scores else {})})
        for p in predictions
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _write_result_file(
    folder: Path, task: Any, predictions: Sequence[Prediction], examples: Sequence[Example], split: str
) -> None:
    """The predictions in the form that the benchmark's server takes: of a whole split, and where there is such a form."""
    file = task.result_file(predictions, examples, split) if len(examples) == len(task.examples(split)) else None
    if file is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.data)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def format_results(results: Mapping[str, Mapping[str, Any]], *, markdown: bool = False) -> str:
    """One table for one checkpoint: primary metric, interval, items, baselines; then averages and further metrics."""
    rows = []
    for name, r in results.items():
        gain = (
            f"{r['gain']:+.1f} ({r['gain'] / r['gain_standard_error']:.1f} se)" if r.get("gain_standard_error") else "-"
        )
        rows.append([
            name + ("" if r.get("trained_on", True) else " (not trained on)"), r["primary"], f"{r['score']:.2f}",
            f"{r['interval'][0]:.1f}..{r['interval'][1]:.1f}", f"{r['num_examples']:,}",
            f"{r['text_only']:.2f}" if "text_only" in r else "-", f"{r['constant']:.2f}" if "constant" in r else "-", gain,
        ])  # fmt: skip
    header = ["task", "metric", "score", "95 % interval", "items", "text-only", "constant", "gain over text-only"]
    lines = [table(rows, header, markdown=markdown), ""]
    scores = {name: r["score"] for name, r in results.items()}
    questions = [s for name, s in scores.items() if results[name]["primary"] != "cider"]
    lines.append(f"average of primary metrics (CIDEr x 100): {sum(scores.values()) / len(scores):.2f}")
    if questions and len(questions) < len(scores):
        lines.append(f"average of the question tasks alone: {sum(questions) / len(questions):.2f}")
    gains = [r["gain"] for r in results.values() if "gain" in r]
    if gains:
        lines.append(f"average gain over text-only: {sum(gains) / len(gains):.2f}")
    own = {"primary", "score", "num_examples", "interval", "standard_error", "text_only", "constant", "gain",
           "gain_standard_error", "trained_on", "split"}  # fmt: skip
    for name, r in results.items():
        more = "  ".join(
            f"{k} {v:.2f}" for k, v in r.items() if k not in own and k != r["primary"] and isinstance(v, float)
        )
        if more:
            lines.append(f"{name}: {more}")
    return "\n".join(lines)
