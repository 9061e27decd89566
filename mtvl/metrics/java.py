"""The two Java programs of the caption metrics: the Stanford PTB tokeniser and METEOR 1.5, as pycocoevalcap ships them.

pycocoevalcap's own wrappers write into site-packages, leave METEOR's error stream unread (a full pipe stops it for
ever), and inherit the machine's locale (METEOR prints ``0,5`` under many). These wrappers use its jars and do none of
that: pipes and temporary files only, a fixed locale, a time limit, and no process outlives its call.
"""

from __future__ import annotations

import contextlib
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


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # METEOR was killed with bytes still in our buffer: nothing is lost
        stream.close()


def _clean(text: str) -> str:
    # The separator inside a text would read as one more reference.
    return text.replace("|||", "").replace("  ", " ").translate(_LINE_BREAKS)


class Meteor:
    """One running METEOR 1.5 (English, -norm); a context manager that always ends the process.

    Starting takes seconds (it reads a paraphrase table), so score several sets with one. Raises JavaError.
    """

    def __init__(self) -> None:
        jar = _jar("meteor", "meteor-1.5.jar")
        command = [_need_java(), *_LOCALE, "-Xmx2G", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
        # A file, not a pipe: nobody reads it while METEOR runs. Closed in `close`.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=tempfile.gettempdir()
            )
        except OSError as error:
            self._errors.close()
            raise JavaError(f"METEOR: expected to start {command[0]}, found: {error}") from error

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; more than once does no harm."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                _close(stream)

    def score(
        self, candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
    ) -> tuple[float, dict[str, float]]:
        """METEOR of tokenised texts: corpus score and score per id, as fractions.

        The corpus score is computed from summed statistics: it is not the mean of the items.
        """
        if not candidates:
            return 0.0, {}
        limit = _START_SECONDS + _SECONDS_PER_TEXT * len(candidates)
        watchdog = threading.Timer(limit, self._process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            answers = self._ask(candidates, references)
            scores = [float(answer) for answer in answers]
        except OSError as error:
            raise self._failure(f"{error}", limit) from error
        except EOFError as error:
            raise self._failure("end of output", limit) from error
        except ValueError as error:
            raise JavaError(f"METEOR: expected numbers, found {error}") from error
        finally:
            watchdog.cancel()
        return scores[-1], dict(zip(candidates, scores[:-1], strict=True))

    def _ask(self, candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> list[str]:
        statistics = []
        for uid, candidate in candidates.items():
            texts = [*map(_clean, references[uid]), _clean(candidate)]
            self._tell(_EVAL_SEPARATOR.join(["SCORE", *texts]))
            statistics.append(self._hear())
        self._tell(_EVAL_SEPARATOR.join(["EVAL", *statistics]))
        return [self._hear() for _ in range(len(statistics) + 1)]

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write((line + "\n").encode("utf-8", "replace"))
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EOFError
        return line.decode("utf-8").strip()

    def _failure(self, found: str, limit: float) -> JavaError:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        return JavaError(
            f"METEOR: expected an answer within {limit:.0f} s, found {found} (exit {self._process.returncode}); "
            f"it said: {_tail(self._errors.read())}. It needs 2 GB of memory."
        )


def run_meteor(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """`Meteor.score` with a process of its own."""
    if not candidates:
        return 0.0, {}
    with Meteor() as meteor:
        return meteor.score(candidates, references)
