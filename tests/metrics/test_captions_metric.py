from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mtvl.errors import ConfigError, DataError
from mtvl.metrics import captions, java
from mtvl.metrics.captions import replace_non_ascii, score_captions, score_tokenised, tokenise

needs_java = pytest.mark.skipif(java.find_java() is None, reason="no working java on PATH")

REFERENCES = {
    "1": ["A man rides a horse.", "The man is riding a brown horse."],
    "2": ["Two dogs play in the snow.", "Dogs are playing in snow."],
    "3": ["A red car is parked."],
}
PREDICTIONS = {"2": "two dogs play in the snow", "1": "a man on a horse", "3": ""}


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    java.find_java.cache_clear()
    yield
    java.find_java.cache_clear()


@pytest.mark.usefixtures("no_java")
def test_without_java_everything_but_meteor_is_scored_and_labelled() -> None:
    result = score_captions(PREDICTIONS, REFERENCES)
    assert set(result.metrics) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}
    assert result.details["tokenizer"] == "python" and result.details["meteor"] == "left out (no Java)"
    assert result.primary == "CIDEr"
    assert result.metrics["CIDEr"] == pytest.approx(sum(result.per_item.values()) / 3)
    assert result.per_item["2"] > result.per_item["1"] > result.per_item["3"] == 0
    assert result.details["tokenised"]["1"]["references"][0] == "a man rides a horse"
    assert result.details["per_item_metrics"]["ROUGE_L"]["2"] == pytest.approx(100)


@pytest.mark.usefixtures("no_java")
def test_asking_for_java_without_java_says_so() -> None:
    with pytest.raises(java.JavaError, match="choose tokenizer=python"):
        score_captions(PREDICTIONS, REFERENCES, tokenizer="ptb")


def _fake_java(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = folder / "java"
    script.write_text("#!/bin/sh\n" + body)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    java.find_java.cache_clear()


@pytest.mark.usefixtures("no_java")
def test_a_java_that_only_advertises_is_no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_java(tmp_path, "echo 'get Java at ...' >&2; exit 1\n", monkeypatch)
    assert java.find_java() is None


@pytest.mark.usefixtures("no_java")
def test_a_broken_java_is_reported_and_the_scores_still_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_java(tmp_path, '[ "$1" = -version ] && exit 0\necho "out of memory" >&2; exit 3\n', monkeypatch)
    with pytest.warns(UserWarning, match="out of memory"):
        result = score_captions(PREDICTIONS, REFERENCES)
    assert result.details["tokenizer"] == "python" and "METEOR" not in result.metrics
    with pytest.raises(java.JavaError, match="out of memory"):
        tokenise(["a"], "ptb")


@pytest.mark.usefixtures("no_java")
def test_a_meteor_that_talks_on_its_error_stream_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 300 kB of errors would fill a pipe that nobody reads; then one answer for SCORE, two for EVAL of one caption.
    body = """[ "$1" = -version ] && exit 0
i=0; while [ $i -lt 3000 ]; do printf '%0100d\\n' 0 >&2; i=$((i+1)); done
read line; echo "1.0"; read line; echo "0.25"; echo "0.75"; sleep 60
"""
    _fake_java(tmp_path, body, monkeypatch)
    assert java.run_meteor({"1": "a"}, {"1": ["a"]}) == (0.75, {"1": 0.25})


@pytest.mark.usefixtures("no_java")
def test_a_meteor_that_falls_silent_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_java(tmp_path, '[ "$1" = -version ] && exit 0\nexec sleep 60\n', monkeypatch)
    monkeypatch.setattr(java, "_START_SECONDS", 0.3)
    with pytest.raises(java.JavaError, match="end of output"):
        java.run_meteor({"1": "a"}, {"1": ["a"]})


@pytest.mark.usefixtures("no_java")
def test_meteor_failing_alone_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise java.JavaError("no memory")

    monkeypatch.setattr(captions, "run_ptb", lambda texts: [text.lower() for text in texts])
    monkeypatch.setattr(captions, "find_java", lambda: "java")
    monkeypatch.setattr(captions, "run_meteor", fail)
    with pytest.warns(UserWarning, match="METEOR is left out: no memory"):
        result = score_captions(PREDICTIONS, REFERENCES)
    assert result.details["tokenizer"] == "ptb" and result.details["meteor"] == "left out (failed)"
    assert "METEOR" not in result.metrics and "CIDEr" in result.metrics


@needs_java
def test_java_and_python_tokenisers_agree_and_keep_lines_apart() -> None:
    texts = ["Don't stop.", "", "two\x0blines\x0cin\rone\nhere", "a (b) c", "", "It's 5 p.m. - café?!", ""]
    assert tokenise(texts, "ptb") == (tokenise(texts, "python")[0], "ptb")


@needs_java
@pytest.mark.slow
def test_meteor_survives_a_comma_locale_and_empty_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    result = score_captions(PREDICTIONS, REFERENCES)
    assert result.details["meteor"] == "meteor-1.5"
    assert result.details["per_item_metrics"]["METEOR"]["2"] == pytest.approx(100)
    assert 0 < result.metrics["METEOR"] < 100


def test_one_caption_alone_has_cider_0() -> None:
    assert score_tokenised({"1": "a b c d"}, {"1": ["a b c d"]}, meteor=False).metrics["CIDEr"] == 0


def test_captions_that_are_all_empty_score_0() -> None:
    metrics = score_tokenised({"1": "", "2": ""}, {"1": ["a b"], "2": ["c d"]}, meteor=False).metrics
    assert metrics == pytest.approx(dict.fromkeys(metrics, 0.0))


def test_ids_and_references_are_checked() -> None:
    with pytest.raises(DataError, match="1 missing"):
        score_captions({}, {"1": ["a"]}, tokenizer="python")
    with pytest.raises(DataError, match="first: 2"):
        score_captions({"1": "a", "2": "b"}, {"1": ["a"], "2": [" ."]}, tokenizer="python")


def test_ascii_only_is_a_choice() -> None:
    assert replace_non_ascii("a café") == "a caf "
    kept = score_captions({"1": "café"}, {"1": ["café"]}, tokenizer="python")
    lost = score_captions({"1": "café"}, {"1": ["café"]}, tokenizer="python", ascii_only=True)
    assert kept.details["tokenised"]["1"]["candidate"] == "café"
    assert lost.details["tokenised"]["1"]["candidate"] == "caf"


def test_unknown_tokenizer() -> None:
    with pytest.raises(ConfigError, match="did you mean 'python'"):
        tokenise(["a"], "pyton")
