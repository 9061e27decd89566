"""The two Java programs of the caption metrics: the Stanford PTB tokeniser and METEOR 1.5, as pycocoevalcap ships them.

pycocoevalcap's own wrappers write into site-packages, leave METEOR's error stream unread (a full pipe stops it for
ever), and inherit the machine's locale (METEOR prints ``0,5`` under many). These wrappers use its jars and do none of
that: pipes and temporary files only, a fixed locale, a time limit, and no process outlives its call.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from mtvl.errors import MtvlError

_LOCALE = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
_START_SECONDS = 120.0
_SECONDS_PER_TEXT = 0.1
_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\x0b\x0c", " "))
_EVAL_SEPARATOR = " ||| "


class JavaError(MtvlError):
    """A Java program could not be started, failed, or answered something unexpected."""


@functools.cache
def find_java() -> str | None:
    """Path of a Java that runs, or None. A `java` that only says where to get Java counts as none."""
    java = shutil.which("java")
    if java is None:
        return None
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, timeout=_START_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return java if answer.returncode == 0 else None


def _jar(package: str, name: str) -> str:
    spec = importlib.util.find_spec("pycocoevalcap")
    places = [Path(place) / package / name for place in (spec.submodule_search_locations or [])] if spec else []
    for path in places:
        if path.is_file():
            return str(path)
    raise JavaError(f"expected {name} inside the package pycocoevalcap, found none; install pycocoevalcap==1.2")


def _need_java() -> str:
    java = find_java()
    if java is None:
        raise JavaError("expected a working `java` on PATH, found none; install a JRE or choose tokenizer=python")
    return java


def _tail(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip()[-400:] or "(nothing)"


def run_ptb(texts: Sequence[str]) -> list[str]:
    """Tokens of each text, joined by spaces, as the Stanford PTBTokenizer gives them with -preserveLines -lowerCase.

    Line breaks inside a text become spaces (all that the program takes for one, not only ``\\n``, which would shift
    every following caption). Raises JavaError.
    """
    if not texts:
        return []
    jar = _jar("tokenizer", "stanford-corenlp-3.4.1.jar")
    program = "edu.stanford.nlp.process.PTBTokenizer"
    command = [_need_java(), *_LOCALE, "-cp", jar, program, "-preserveLines", "-lowerCase", "-encoding", "utf-8"]
    # Surrogates cannot be encoded: they come from broken JSON escapes and carry no text.
    lines = "".join(text.translate(_LINE_BREAKS) + "\n" for text in texts).encode("utf-8", "replace")
    limit = _START_SECONDS + _SECONDS_PER_TEXT * len(texts)
    try:
        done = subprocess.run(command, input=lines, capture_output=True, timeout=limit, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JavaError(f"PTB tokeniser: expected an answer within {limit:.0f} s, found: {error}") from error
    tokenised = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode != 0 or len(tokenised) != len(texts):
        raise JavaError(
            f"PTB tokeniser: expected {len(texts)} lines, found {len(tokenised)} (exit {done.returncode}); "
            f"it said: {_tail(done.stderr)}"
        )
    return [line.rstrip() for line in tokenised]


class _Meteor:
    """One running METEOR process; a context manager that always ends it."""

    def __init__(self, limit_seconds: float) -> None:
        jar = _jar("meteor", "meteor-1.5.jar")
        command = [_need_java(), *_LOCALE, "-Xmx2G", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
        self._errors = tempfile.TemporaryFile()  # a file, not a pipe: nobody reads it while METEOR runs
        self._limit = limit_seconds
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=tempfile.gettempdir()
            )
        except OSError as error:
            self._errors.close()
            raise JavaError(f"METEOR: expected to start {command[0]}, found: {error}") from error
        self._watchdog = threading.Timer(limit_seconds, self._process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def __enter__(self) -> _Meteor:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                _close(stream)

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((line + "\n").encode("utf-8", "replace"))
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure(f"{error}") from error

    def hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure("end of output")
        return line.decode("utf-8").strip()

    def _failure(self, found: str) -> JavaError:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        return JavaError(
            f"METEOR: expected an answer within {self._limit:.0f} s, found {found} (exit "
            f"{self._process.returncode}); it said: {_tail(self._errors.read())}. It needs 2 GB of memory."
        )


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        pass  # METEOR was killed with bytes still in our buffer: nothing is lost


def _clean(text: str) -> str:
    # The separator inside a text would read as one more reference.
    return text.replace("|||", "").replace("  ", " ").translate(_LINE_BREAKS)


def run_meteor(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """METEOR 1.5 (English, -norm) of tokenised texts: corpus score and score per id, as fractions.

    The corpus score is computed from summed statistics: it is not the mean of the items. Raises JavaError.
    """
    if not candidates:
        return 0.0, {}
    with _Meteor(_START_SECONDS + _SECONDS_PER_TEXT * len(candidates)) as meteor:
        statistics = []
        for uid, candidate in candidates.items():
            texts = [*map(_clean, references[uid]), _clean(candidate)]
            meteor.tell(_EVAL_SEPARATOR.join(["SCORE", *texts]))
            statistics.append(meteor.hear())
        meteor.tell(_EVAL_SEPARATOR.join(["EVAL", *statistics]))
        answers = [meteor.hear() for _ in range(len(statistics) + 1)]
    try:
        scores = [float(answer) for answer in answers]
    except ValueError as error:
        raise JavaError(f"METEOR: expected numbers, found {error}") from error
    return scores[-1], dict(zip(candidates, scores[:-1], strict=True))
