"""tools/check_metrics.py: verdicts and exit codes on small folders, and the recorded evaluators' outputs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mtvl.metrics import java

Check = Callable[..., tuple[int, str]]
TOOL = Path(__file__).parents[2] / "tools" / "check_metrics.py"
GOLDEN = os.environ.get("MTVL_GOLDEN")
needs_golden = pytest.mark.skipif(GOLDEN is None, reason="MTVL_GOLDEN is not set: no recorded evaluator outputs")


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("check_metrics", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.fixture
def check(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run the tool in this process: (exit code, everything printed)."""

    def run(*arguments: object) -> tuple[int, str]:
        code = tool.main([*map(str, arguments)])
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    java.find_java.cache_clear()
    yield
    java.find_java.cache_clear()


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def how2qa(folder: Path, accuracy: float = 50.0, **fields: object) -> None:
    write(folder / "truth.jsonl", '{"qid": 1, "answer_idx": 2}\n{"qid": 2, "answer_idx": 0}\n')
    write(folder / "said.json", {"1": 2, "2": 1})
    expected = {
        "family": "metrics", "kind": "how2qa", "inputs": {"annotations": "truth.jsonl", "predictions": "said.json"},
        "accuracy": accuracy, "correct": 1, "total": 2, "per_question": {"1": 1, "2": 0}, **fields,
    }  # fmt: skip
    write(folder / "odd_expected.json", expected)


def test_names_of_files_do_not_matter_and_a_wrong_figure_fails(check: Check, tmp_path: Path) -> None:
    how2qa(tmp_path / "a" / "b")
    how2qa(tmp_path / "c", accuracy=51.0)
    code, text = check(tmp_path)
    assert code == 1 and "PASS a/b/odd " in text and "FAIL c/odd 1 " in text
    assert "accuracy: expected 51.0, found 50.0" in text
    assert check(tmp_path, "--case", "a/b/odd")[0] == 0
    code, text = check(tmp_path, "--case", "a/b/od")
    assert code == 2 and "did you mean 'a/b/odd'" in text


def test_every_recorded_question_is_compared(check: Check, tmp_path: Path) -> None:
    how2qa(tmp_path, per_question={"1": 0, "2": 1})
    code, text = check(tmp_path)
    assert code == 1 and "per question[1]" in text


@pytest.mark.parametrize("fields", [{"kind": "vqaa"}, {"family": "metric"}, {"kind": None}])
def test_what_nobody_knows_fails(check: Check, tmp_path: Path, fields: dict[str, Any]) -> None:
    how2qa(tmp_path, **fields)
    code, text = check(tmp_path)
    assert code == 1 and text.startswith("FAIL") and "nobody knows" in text


def test_what_cannot_be_read_is_exit_code_2(check: Check, tmp_path: Path) -> None:
    assert check(tmp_path / "none")[0] == 2
    assert check(tmp_path)[0] == 2
    how2qa(tmp_path / "x")
    (tmp_path / "x" / "said.json").unlink()
    code, text = check(tmp_path)
    assert code == 2 and "said.json" in text
    write(tmp_path / "x" / "odd_expected.json", "{broken")
    code, text = check(tmp_path)
    assert code == 2 and "odd_expected.json" in text and "Traceback" not in text


def test_fields_of_another_layout_fail(check: Check, tmp_path: Path) -> None:
    how2qa(tmp_path)
    write(tmp_path / "odd_expected.json", {"family": "metrics", "kind": "ptb_tokeniser"})
    code, text = check(tmp_path)
    assert code == 1 and text.startswith("FAIL odd ") and "not laid out as kind 'ptb_tokeniser'" in text


@pytest.mark.usefixtures("no_java")
def test_without_java_the_rest_is_run_and_labelled(check: Check, tmp_path: Path) -> None:
    row = {"candidate": "a b", "references": ["a b"], "ROUGE_L": 1.0, "METEOR": 0.123}
    overall = {"Bleu_1": 1.0, "Bleu_2": 1.0, "Bleu_3": 0.01, "Bleu_4": 0.001, "ROUGE_L": 1.0, "METEOR": 0.123}
    expected = {"family": "metrics", "kind": "captions_edge_cases", "overall": {**overall, "CIDEr": 0.0}}
    write(tmp_path / "cases" / "expected.json", {**expected, "items": {"one": row}})
    code, text = check(tmp_path)
    assert code == 0 and text.startswith("PASS cases ") and "METEOR not run" in text
    assert check(tmp_path, "--require-all")[0] == 1


def test_runs_as_a_script_from_anywhere(tmp_path: Path) -> None:
    how2qa(tmp_path)
    done = subprocess.run([sys.executable, str(TOOL), "."], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("PASS odd "), done.stderr


@needs_golden
@pytest.mark.usefixtures("no_java")
def test_recorded_outputs_without_java(check: Check) -> None:
    code, text = check(Path(str(GOLDEN)) / "metrics")
    assert code == 0 and "FAIL" not in text, text
    assert text.count("PASS") >= 14


@needs_golden
@pytest.mark.slow
@pytest.mark.skipif(java.find_java() is None, reason="no working java on PATH")
def test_recorded_outputs_with_java(check: Check) -> None:
    code, text = check(Path(str(GOLDEN)) / "metrics", "--require-all")
    assert code == 0 and "SKIP" not in text, text
