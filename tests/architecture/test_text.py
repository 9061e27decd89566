"""House rules that can be read off the text of the repository."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("mtvl", "launch", "tools")
MAX_FILE, MAX_FUNCTION = 400, 40

# What is longer than the rule, and why it stays in one piece. An entry that became short must go.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "mtvl/evaluate.py:evaluate": "the evaluation from checkpoint to table in the order in which it happens",
    "tools/pretrain_tiny.py:main": "the recorded recipe, step after step; no part of it runs alone",
}


def repository_files() -> list[Path]:
    """Files that git tracks or would track; without git, everything but environments and caches."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0:
        return [ROOT / name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]
    skipped = {".venv", ".git", "runs", "build", "__pycache__", ".mtvl_cache"}
    return [f for f in ROOT.rglob("*") if f.is_file() and not skipped & set(f.relative_to(ROOT).parts)]


def code_files() -> list[Path]:
    return [f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py"))]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the signature to the last one, docstring left out."""
    length = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        text = function.body[0]
        length -= (text.end_lineno or text.lineno) - text.lineno + 1
    return length


def long_functions(source: str, limit: int = MAX_FUNCTION) -> dict[str, int]:
    """Qualified name -> lines of every function above `limit`."""
    found = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = f"{prefix}{child.name}" if hasattr(child, "name") else prefix
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and body_lines(child) > limit:
                found[name] = body_lines(child)
            is_scope = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            visit(child, f"{name}." if is_scope else prefix)

    visit(ast.parse(source), "")
    return found


def task_comparisons(source: str, task_names: set[str]) -> list[int]:
    """Lines that compare something with the name of a task, or anything called task with a literal name."""

    def names(node: ast.expr) -> set[str]:
        return {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str) and c.value}

    def is_task(node: ast.expr) -> bool:
        last = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        return last in ("task", "task_name")

    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            literals = set().union(*(names(s) for s in sides if not isinstance(s, (ast.Attribute, ast.Name, ast.Call))))
            if literals & task_names or (literals and any(is_task(s) for s in sides)):
                lines.append(node.lineno)
        elif isinstance(node, ast.Match) and any(
            names(case.pattern.value) & task_names for case in node.cases if isinstance(case.pattern, ast.MatchValue)
        ):
            lines.append(node.lineno)
    return lines


def test_no_file_names_a_folder_outside_the_repository() -> None:
    outside = ".." + "/shared"  # in two pieces: this file is read as well
    named = []
    for file in repository_files():
        if file != ROOT / ".ci" / "run" and outside.encode() in file.read_bytes():
            named.append(str(file.relative_to(ROOT)))
    assert not named


def test_files_are_short_or_say_why() -> None:
    found = {
        str(f.relative_to(ROOT)): n
        for f in code_files()
        if (n := len(f.read_text(encoding="utf-8").splitlines())) > MAX_FILE
    }
    assert found.keys() - LONG_FILES.keys() == set(), f"split by idea, or give a reason in LONG_FILES: {found}"
    assert LONG_FILES.keys() - found.keys() == set(), "these are short now: drop them from LONG_FILES"


def test_functions_are_short_or_say_why() -> None:
    found = {
        f"{f.relative_to(ROOT)}:{name}": lines
        for f in code_files()
        for name, lines in long_functions(f.read_text(encoding="utf-8")).items()
    }
    new = {name: lines for name, lines in found.items() if name not in LONG_FUNCTIONS}
    assert not new, f"split by idea, or give a reason in LONG_FUNCTIONS: {new}"
    assert LONG_FUNCTIONS.keys() - found.keys() == set(), "these are short now: drop them from LONG_FUNCTIONS"


@pytest.mark.parametrize("file", [str(f.relative_to(ROOT)) for f in code_files() if f.is_relative_to(ROOT / "mtvl")])
def test_nothing_asks_for_the_name_of_a_task(file: str) -> None:
    """What differs between tasks is data in tasks/*.yaml or a method of the task object."""
    task_names = {"vqa", "gqa", "nlvr2", "coco"} | {f.stem for f in (ROOT / "tasks").glob("*.yaml")}
    lines = task_comparisons((ROOT / file).read_text(encoding="utf-8"), task_names)
    assert not lines, f"{file}, lines {lines}"


def reentrant_recomputes(source: str) -> list[int]:
    """Lines that ask torch or transformers for recompute without `use_reentrant=False`."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("checkpoint", "checkpoint_sequential"):
            given = [k.value for k in node.keywords if k.arg == "use_reentrant"]
        elif name == "gradient_checkpointing_enable":
            tables = [n for n in ast.walk(node) if isinstance(n, ast.Dict)]
            given = [
                value for t in tables for key, value in zip(t.keys, t.values, strict=True)
                if isinstance(key, ast.Constant) and key.value == "use_reentrant"
            ]  # fmt: skip
        else:
            continue
        if not given or any(not isinstance(v, ast.Constant) or v.value is not False for v in given):
            lines.append(node.lineno)
    return lines


def test_recompute_is_never_reentrant() -> None:
    """That kind gives adapters behind a frozen first layer no gradient."""
    users = 0
    for file in code_files():
        source = file.read_text(encoding="utf-8")
        users += "use_reentrant" in source
        assert not reentrant_recomputes(source), file
    assert users >= 2
    bad = ("checkpoint(f, x)", "c.checkpoint(f, x, use_reentrant=True)", "m.gradient_checkpointing_enable()",
           "m.gradient_checkpointing_enable({'use_reentrant': True})")  # fmt: skip
    assert all(reentrant_recomputes(text) == [1] for text in bad)
    good = ("checkpoint(f, x, use_reentrant=False)", "m.gradient_checkpointing_enable({'use_reentrant': False})")
    assert not any(reentrant_recomputes(text) for text in good)


def test_the_checkers_find_what_they_should() -> None:
    body = "\n".join(["    x = 1"] * 45)
    source = (
        f'class A:\n    def f(self):\n{body.replace("    x", "        x")}\n\ndef g():\n    """One."""\n    return 1\n'
    )
    assert long_functions(source) == {"A.f": 46}
    names = {"vqa", "gqa"}
    for bad in (
        "x = 1 if batch.task == 'other' else 2",
        "if name in ('vqa', 'gqa'): pass",
        "if 'vqa' == kind: pass",
        "match t:\n    case 'gqa': pass",
    ):
        assert task_comparisons(bad, names), bad
    for good in (
        "if task == other.task: pass",
        "if task in tasks: pass",
        "if mode == 'choose': pass",
        "x = {'vqa': 1}",
    ):
        assert not task_comparisons(good, names), good
