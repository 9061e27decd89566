"""What is kept of a finished run: one small JSON file, and what decides whether it still belongs to a recipe.

A record stands for a run for good, also without its run folder: it holds the scores and the run's identity, that is every
setting, and hashes of task files and local weights. Only runs without a record of equal identity are run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mtvl.backbones.clip_config import bundled_folder
from mtvl.config import RunConfig, read_yaml, to_plain
from mtvl.data.miniworld.write import VERSION as MINIWORLD
from mtvl.data.shards import sha256_of
from mtvl.errors import CheckpointError
from mtvl.export import find_export, read_config
from mtvl.tasks.files import task_file

FORMAT = 1
TAIL_BYTES = 16384
CODE = ("mtvl", "launch", "tasks", "ds_configs")  # what a result depends on; records and tables change while runs go on
# These change neither a model nor its scores.
IGNORED = (
    "data.cache", "data.workers", "checkpoint.every_steps", "checkpoint.keep_last", "train.log_every", "train.stuck_seconds",
)  # fmt: skip
KEYS = {"format", "method", "seed", "scores", "average", "trainable", "total", "budget", "identity", "digest"}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def identity_of(config: RunConfig) -> dict[str, Any]:
    """All that a run's result depends on, as dotted keys: settings, task files, local weights, embedded data."""
    identity = {k: v for k, v in flat(to_plain(config)).items() if k not in IGNORED}
    for task in config.tasks:
        identity[f"tasks/{task}.yaml"] = digest_of(read_yaml(task_file(task, None, config.data.folder)))
    for key, value in config.backbone.items():
        if key.endswith("weights") and isinstance(value, str) and value:
            path = bundled_folder(value) or Path(value)
            if path.exists():
                identity[f"content of backbone.{key}"] = _content_digest(path)
    if not config.data.root:
        identity["miniworld"] = MINIWORLD
    return identity


def digest_of(values: Mapping[str, Any]) -> str:
    """Short hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def _content_digest(path: Path) -> str:
    """Hash of a file, or of a backbone's folder without folders inside it: a pre-training leaves its run there."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file()):
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words. A setting that came later equals its default."""
    defaults = flat(to_plain(RunConfig()))
    keys = [*now, *(k for k in before if k not in now)]
    pairs = {k: (before.get(k, defaults.get(k, "(absent)")), now.get(k, defaults.get(k, "(absent)"))) for k in keys}
    return [f"{key}: {a!r} -> {b!r}" for key, (a, b) in pairs.items() if a != b]


def write_json(path: Path, value: Any) -> None:
    """Write atomically: whoever is killed leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in `path`, or None when there is no such file; CheckpointError when it is none or was changed."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no record of a run ({error}); delete it to have it run again") from None
    missing = sorted(KEYS - set(record)) if isinstance(record, dict) else sorted(KEYS)
    if missing or record["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: expected a record of format {FORMAT}, found "
            + (f"none of {', '.join(missing)}" if missing else f"format {record['format']}")
            + "; delete it to have it run again"
        )
    if digest_of(record["identity"]) != record["digest"]:
        raise CheckpointError(f"{path} was edited: its settings have another digest; delete it to have it run again")
    return record


def read_mark(path: Path) -> dict[str, Any]:
    """What a run folder of a comparison says about itself: identity and commits; CheckpointError when it is damaged."""
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
        found = "" if isinstance(mark, dict) and {"identity", "commits"} <= mark.keys() else "neither of both"
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        found = str(error)
    if found:
        raise CheckpointError(
            f"{path}: expected a run's 'identity' and 'commits', found {found}; delete {path.parent} to have it trained again"
        )
    return mark


def read_scores(run: Path) -> dict[str, float]:
    """Primary metrics of an evaluated run by task; CheckpointError when it has not been evaluated."""
    return {task: float(result["score"]) for task, result in read_results(run).items()}


def read_results(run: Path) -> dict[str, dict[str, Any]]:
    """Content of a run's eval.json."""
    file = run / "eval.json"
    if not file.is_file():
        raise CheckpointError(f"{run} has no eval.json; run launch/evaluate.py --checkpoint {run}")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        if all("score" in result for result in results.values()):
            return results
        found = "a task without a score"
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        found = str(error)
    raise CheckpointError(f"{file}: expected the scores of an evaluation, found {found}; evaluate the run again")


def average_of(scores: Mapping[str, float]) -> float:
    """The papers' average: mean of the primary metrics, CIDEr x 100."""
    return sum(scores.values()) / len(scores)


def read_run(run: Path) -> dict[str, Any]:
    """Scores and facts of one evaluated run; CheckpointError when it has not been evaluated."""
    config, content = read_config(find_export(run))
    scores = read_scores(run)
    return {
        "run": str(run), "method": config.petl["name"], "share": config.petl.get("share", "-"), "seed": config.seed,
        "steps": content.get("step"), "trained_percent": 100 * content["trainable"] / content["total"],
        "scores": scores, "average": average_of(scores),
    }  # fmt: skip


def log_records(run: Path) -> list[dict[str, Any]]:
    """The training steps in a run's log; a line that is still being written is left out."""
    file = run / "log.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise CheckpointError(f"{file}, row {number + 1}: no JSON") from None
    return [r for r in records if "samples_per_second" in r]


def last_step(run: Path, since: float = 0.0) -> dict[str, Any]:
    """The last training step in a run's log, read from the end of a file that may be long.

    {} when there is none, or none was written `since` (seconds of the epoch): a run that goes on drops what lies behind
    its checkpoint.
    """
    file = run / "log.jsonl"
    if not file.is_file() or file.stat().st_mtime < since:
        return {}
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
        lines = stream.read().split(b"\n")
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):  # cut off at either end
            record = json.loads(line)
            if isinstance(record, dict) and "samples_per_second" in record:
                return record
    return {}


def step_seconds(records: Iterable[Mapping[str, Any]]) -> list[float]:
    """Seconds of each logged step: loading, computing and updating; without saving and validating."""
    seconds, before = [], 0
    for record in records:
        seen = sum(record["samples"].values())
        seconds.append((seen - before) / record["samples_per_second"])
        before = seen
    return seconds


def make_record(
    run: Path, method: str, seed: int, *, identity: Mapping[str, Any], commits: Iterable[str], evaluate_seconds: float
) -> dict[str, Any]:
    """The record of a run folder that has been trained and evaluated."""
    config, content = read_config(find_export(run))
    results, steps = read_results(run), log_records(run)
    scores = {task: float(result["score"]) for task, result in results.items()}
    if missing := [task for task in config.tasks if task not in scores]:
        raise CheckpointError(
            f"{run}: no score for {', '.join(missing)}; a split without public answers compares nothing"
        )
    seconds = step_seconds(steps)
    return {
        "format": FORMAT, "method": method, "seed": seed, "scores": scores, "average": average_of(scores),
        "metrics": {task: result["primary"] for task, result in results.items()},
        "num_examples": {task: result["num_examples"] for task, result in results.items()},
        "trainable": content["trainable"], "total": content["total"],
        "trained_percent": 100 * content["trainable"] / content["total"],
        "seconds_per_step": statistics.median(seconds),
        "peak_memory_bytes": max((r["memory_bytes"] for r in steps if "memory_bytes" in r), default=None),
        "budget": {
            "steps": content["step"], "global_batch": config.train.global_batch, "slots": config.mixture.slots,
            "train_seconds": round(sum(seconds), 1), "evaluate_seconds": round(evaluate_seconds, 1),
        },
        "commit": "+".join(dict.fromkeys(commits)), "digest": digest_of(identity), "identity": dict(identity),
    }  # fmt: skip


def commit_name(folder: Path) -> str:
    """Short commit of a checkout, with * when its code differs from it; "unknown" where git has no answer."""
    commands = (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", *CODE])
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for words in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + "*" * bool(changes)
