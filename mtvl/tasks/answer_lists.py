"""Lists of answers for backbones that choose from one: read from files, or counted in the training splits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtvl.errors import ConfigError, DataError, near_names
from mtvl.types import Example, Task

MANY = 20_000  # answers of one task; above it the head would be larger than its encoder
LEAST = 0.5  # share of the training examples that must have an answer of the list, and one that stands twice


@dataclass(frozen=True)
class Lists:
    """Answers by task, the most frequent first; the tasks with exactly one right answer; what to tell the user."""

    of_task: dict[str, tuple[str, ...]]
    exclusive: tuple[str, ...]
    remarks: tuple[str, ...]


def answer_lists(tasks: Mapping[str, Task], files: Mapping[str, str], root: Path, limit: int = 0) -> Lists:
    """The answers of every task, over all tasks at most `limit` different ones (0: all).

    A task that chooses among fixed texts has these, and exactly one of them is right; the others have those of their file
    in `files` (a JSON list of texts, absolute or below `root`), or those of the training split. Above the limit the
    answers of the fewest examples are left out, the last in the alphabet among equals, but no choice and none of a file.
    Raises ConfigError for tasks that rank each row's own choices or answer with free text, and for a limit that leaves
    most examples without an answer; DataError for a faulty file.
    """
    for name in files:
        if name not in tasks:
            raise ConfigError(f"'backbone.answer_files.{name}' is not one of the tasks; {near_names(name, tasks)}")
    exclusive = tuple(name for name, task in tasks.items() if task.decoding.mode == "choose")
    given: dict[str, tuple[str, ...]] = {}
    counts: dict[str, Counter[str]] = {}
    for name, task in tasks.items():
        if task.decoding.mode == "rank":
            raise ConfigError(
                f"task {name!r} ranks each row's own choices, which are no list of answers; set "
                f"task.{name}.decoding.mode=generate, or take a backbone that writes text"
            )
        if task.decoding.mode == "rank_list":
            raise ConfigError(
                f"task {name!r} ranks a list of answers by their words, and this backbone chooses from a list of its own; set "
                f"task.{name}.decoding.mode=generate"
            )
        if name in exclusive:
            given[name] = task.decoding.choices
        elif name in files:
            given[name] = read_answers(_below(root, files[name]))
        else:
            counts[name] = _counted(name, task.examples("train"))
    kept = _most_frequent(counts, {text for texts in given.values() for text in texts}, limit)
    of_task = {name: given.get(name) or tuple(t for t, _ in ranked(counts[name]) if t in kept) for name in tasks}
    learned = [name for name in tasks if name not in exclusive]
    remarks = [_covered(n, tasks[n], of_task[n], len(counts.get(n, of_task[n]))) for n in learned]
    return Lists(of_task, exclusive, tuple(remarks))


def listed_answers(task: Task, root: Path) -> tuple[str, ...]:
    """The answers that a task with `decoding.mode` rank_list ranks, each once; `types.Decoding` says which these are.

    DataError where they cannot be read; ConfigError where there is none.
    """
    decoding = task.decoding
    if decoding.choices:
        return tuple(dict.fromkeys(decoding.choices))
    if decoding.list_file:
        return read_answers(_below(root, decoding.list_file), f"task.{task.name}.decoding.list_file")
    try:
        examples = task.examples("train")
    except DataError as error:
        raise DataError(
            f"task {task.name!r} ranks the answers of its training split, which cannot be read ({error}); name a list with "
            f"task.{task.name}.decoding.list_file, or set decoding.mode=generate"
        ) from None
    counts = Counter(target.text for e in examples for target in e.targets if target.text and target.weight > 0)
    if not counts:
        raise ConfigError(f"task {task.name!r}: expected answers to rank, found none in its training split")
    return tuple(text for text, _ in ranked(counts)[: decoding.list_size or None])


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """(answer, count), the most frequent first, in alphabetical order among equals."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def read_answers(file: Path, key: str = "backbone.answer_files") -> tuple[str, ...]:
    """A JSON list of texts, e.g. the `trainval_label2ans.json` of VQA and GQA; an empty text stands for no answer."""
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"expected a JSON list of answers ({error}); see '{key}'", file=file) from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not any(names):
        raise DataError(f"expected a JSON list of texts, found {str(names)[:60]}", file=file)
    return tuple(name for name in dict.fromkeys(names) if name)


def _below(root: Path, name: str) -> Path:
    return root / Path(name).expanduser()  # an absolute path stays what it is


def _counted(name: str, examples: Sequence[Example]) -> Counter[str]:
    """In how many examples each answer stands; ConfigError where most best answers stand once, as in free text."""
    counts = Counter(target.text for e in examples for target in e.targets if target.text and target.weight > 0)
    best = [max(e.targets, key=lambda target: target.weight).text for e in examples]
    repeated = sum(counts[text] > 1 for text in best)
    if repeated < LEAST * len(examples):
        raise ConfigError(
            f"task {name!r}: of {len(examples):,} training examples only {repeated:,} have an answer that stands in another "
            "one too; that is free text and no list of answers: leave the task out, or take a backbone that writes text "
            "(clip_bart, clip_t5)"
        )
    return counts


def _most_frequent(counts: Mapping[str, Counter[str]], fixed: set[str], limit: int) -> set[str]:
    """The answers of all tasks, or the `limit` most frequent of them with all fixed choices."""
    together: Counter[str] = Counter()
    for name, own in counts.items():
        if not limit and len(own) > MANY:
            raise ConfigError(
                f"task {name!r} has {len(own):,} different answers; say with 'backbone.num_answers' how many of the most "
                "frequent are kept (CLIP-ViL: 3129 for VQA)"
            )
        together.update(own)
    names = [text for text, _ in ranked(together) if text not in fixed]
    if limit and len(fixed) > limit:
        raise ConfigError(
            f"'backbone.num_answers' is {limit}, the tasks' choices and the answers of files alone are {len(fixed)}"
        )
    return fixed | set(names[: limit - len(fixed)] if limit else names)


def _covered(name: str, task: Task, answers: Sequence[str], found: int) -> str:
    """A line on what is kept; ConfigError where most training examples are left without an answer."""
    examples, known = task.examples("train"), set(answers)
    hit = sum(any(target.text in known for target in e.targets) for e in examples)
    share = hit / len(examples)
    if share < LEAST:
        raise ConfigError(
            f"only {share:.0%} of the training examples of task {name!r} have one of the {len(answers):,} answers that are "
            "kept; raise 'backbone.num_answers', or check 'backbone.answer_files'"
        )
    return f"answers of {name}: {len(answers):,} of {found:,}; {share:.1%} of the training examples have one of them"
