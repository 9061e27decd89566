"""Checkpoint folders: atomic, verified, retained, refused by name."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mtvl import checkpoint as cp
from mtvl.errors import CheckpointError, ConfigError
from mtvl.saving import Saver

PRINTS = {"base": "sha256:1", "plan": "p1", "tasks": "a,b", "groups": "g"}


def write(run: Path, step: int, text: str = "weights") -> Path:
    def writer(folder: Path) -> None:
        (folder / "engine.bin").write_text(f"{text} {step}")
        (folder / "part").mkdir()
        (folder / "part" / "rank_0.bin").write_bytes(bytes(range(200)))

    return cp.write_checkpoint(run, step, writer, PRINTS, {"samples": 5 * step})


def test_written_checkpoint_is_whole(tmp_path: Path) -> None:
    folder = write(tmp_path, 10)
    assert folder == tmp_path / "checkpoints" / "step_10"
    assert cp.damage(folder) is None
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["engine.bin", "part/rank_0.bin", "state.json"]
    assert manifest["files"]["part/rank_0.bin"]["size"] == 200
    assert cp.read_state(folder, PRINTS)["progress"] == {"samples": 50}
    assert cp.find_resumable(tmp_path) == (folder, 10)
    assert [p.name for p in folder.parent.iterdir()] == ["step_10"]


def test_all_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut would leave a checkpoint of empty files; and the name itself is on the disk before others are deleted."""
    order, sync, replace = [], os.fsync, os.replace

    def synced(number: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        sync(number)

    def replaced(source: Path, target: Path) -> None:
        order.append(f"-> {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write(tmp_path, 10)
    files = {"engine.bin", "rank_0.bin", "state.json", "manifest.json", "step_10.tmp"}
    assert set(order[:-2]) == files and order[-2:] == ["-> step_10", "checkpoints"]
    order.clear()
    cp.write_done(tmp_path, 10, {})
    assert order == ["DONE.tmp", "-> DONE", tmp_path.name]


def test_newest_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (900, 1000, 20):
        write(tmp_path, step)
    assert cp.find_resumable(tmp_path) == (tmp_path / "checkpoints" / "step_1000", 1000)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "sha256 differs": lambda f: flip(f / "part" / "rank_0.bin"),
    "has 3 bytes": lambda f: os.truncate(f / "engine.bin", 3),
    "engine.bin is missing": lambda f: (f / "engine.bin").unlink(),
    "state.json was changed": lambda f: (f / "state.json").write_text((f / "state.json").read_text().replace("5", "6")),
    "manifest.json is missing": lambda f: (f / "manifest.json").unlink(),
    "cannot be read": lambda f: os.truncate(f / "manifest.json", 20),
    "TypeError": lambda f: (f / "manifest.json").write_text("[1]"),
    "RecursionError": lambda f: (f / "manifest.json").write_text("[" * 100_000),
    "does not list state.json": lambda f: (f / "manifest.json").write_text('{"files": {}}'),
}


@pytest.mark.parametrize("named", DAMAGES)
def test_damage_is_named_and_skipped(tmp_path: Path, named: str, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 5)
    folder = write(tmp_path, 15)
    DAMAGES[named](folder)
    with caplog.at_level(logging.WARNING):
        assert cp.find_resumable(tmp_path) == (tmp_path / "checkpoints" / "step_5", 5)
    assert "step_15" in caplog.text and named in caplog.text
    with pytest.raises(CheckpointError, match=f"step_15.*{named}"):
        cp.open_checkpoint(folder)


def test_explicit_folder(tmp_path: Path) -> None:
    folder = write(tmp_path, 7)
    assert cp.resolve_resume(str(folder), tmp_path / "other") == (folder, 7)
    assert cp.resolve_resume(str(tmp_path), tmp_path / "other") == (folder, 7)
    newer = write(tmp_path, 9)
    assert cp.resolve_resume(str(tmp_path), tmp_path) == cp.resolve_resume(str(newer), tmp_path) == (newer, 9)
    with pytest.raises(CheckpointError, match=r"already holds step_9, which is newer than .*step_7; --resume auto"):
        cp.resolve_resume(str(folder), tmp_path)
    branch = write(tmp_path / "branch", 8)  # was stopped there: the same command goes on
    assert cp.resolve_resume(str(folder), tmp_path / "branch") == (branch, 8)
    assert cp.resolve_resume(str(newer), tmp_path / "branch") == (newer, 9)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        cp.resolve_resume(str(tmp_path / "checkpoints" / "step_8"), tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere.*(no such folder|expected folders named step_N)"):
        cp.resolve_resume(str(tmp_path / "nowhere"), tmp_path)


def test_auto_and_never(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert cp.resolve_resume("auto", tmp_path) is None
    assert "starting fresh" in caplog.text
    folder = write(tmp_path, 7)
    assert cp.resolve_resume("auto", tmp_path) == (folder, 7)
    assert cp.resolve_resume("never", tmp_path) is None


@pytest.mark.parametrize("item", [*PRINTS, "absent then", "absent now"])
def test_other_run_is_refused_by_name(tmp_path: Path, item: str) -> None:
    folder = write(tmp_path, 1)
    current = dict(PRINTS)
    if item == "absent then":
        current["petl"] = "adapter"
        message = r"'petl' was \(absent\) when it was saved and is adapter now"
    elif item == "absent now":
        del current["tasks"]
        message = r"'tasks' was a,b when it was saved and is \(absent\) now"
    else:
        current[item] = "other"
        message = f"'{item}' was {PRINTS[item]} when it was saved and is other now"
    with pytest.raises(CheckpointError, match=message):
        cp.read_state(folder, current)


def test_what_is_allowed_may_differ_and_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, 1)
    other = {**PRINTS, "tasks": "a", "plan": "p2"}
    with pytest.raises(CheckpointError, match=r"'plan' was p1 .* is p2 now.*\"checkpoint\.allow=\['plan'\]\""):
        cp.read_state(folder, other, ["tasks"])
    with caplog.at_level(logging.WARNING):
        assert cp.read_state(folder, other, ["tasks", "plan"])["step"] == 1
    assert "'tasks' was a,b when it was saved and is a now, as checkpoint.allow lets it" in caplog.text


def test_failing_writer_leaves_the_old_ones(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)

    def fails(target: Path) -> None:
        (target / "half.bin").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="step 2 was not written; .*No space left.*step_1 stays"):
        cp.write_checkpoint(tmp_path, 2, fails, PRINTS)
    assert cp.find_resumable(tmp_path) == (folder, 1)
    assert [p.name for p in folder.parent.iterdir()] == ["step_1"]  # half a checkpoint would fill the disk for nothing
    (tmp_path / "checkpoints" / "step_2.tmp").mkdir()  # left by a kill
    cp.remove_unfinished(tmp_path)
    assert cp.steps_of(tmp_path) == [1] and not (tmp_path / "checkpoints" / "step_2.tmp").exists()
    assert write(tmp_path, 2).is_dir()


def test_same_step_again_replaces(tmp_path: Path) -> None:
    write(tmp_path, 4, "old")
    folder = write(tmp_path, 4, "new")
    assert (folder / "engine.bin").read_text() == "new 4" and cp.damage(folder) is None
    assert [p.name for p in folder.parent.iterdir()] == ["step_4"]


class Killed(BaseException):
    """What no handler of ours catches, as nothing of ours runs after SIGKILL."""


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> bool:
    """Run `action` and end it before its `moment`-th call that changes or flushes a file; False when it has fewer."""
    count = 0

    def counted(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: object, **named: object) -> object:
            nonlocal count
            if (count := count + 1) > moment:
                raise Killed
            return real(*arguments, **named)

        patched.setattr(owner, name, call)

    with monkeypatch.context() as patched:
        for owner, names in (
            (os, ("replace", "fsync", "mkdir", "unlink", "rmdir")),
            (Path, ("write_text", "write_bytes")),
        ):
            for name in names:
                counted(owner, name)
        try:
            action()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("again", [False, True], ids=["a new step", "the same step again"])
def test_a_kill_at_any_point_leaves_a_whole_checkpoint(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after every file, flush, rename and deletion of a save and of what is no longer kept."""
    moments = 0
    for moment in range(1000):
        run = tmp_path / str(moment)
        write(run, 1)
        write(run, 2, "old")

        def save(run: Path = run) -> None:
            write(run, 2 if again else 3, "new")
            cp.retain(run, 1)

        if not killed_at(moment, monkeypatch, save):
            break
        moments += 1
        cp.remove_unfinished(run)
        found = cp.find_resumable(run)
        assert found is not None and found[1] >= 2, (moment, found)
        assert (found[0] / "engine.bin").read_text() in (f"old {found[1]}", f"new {found[1]}")
        assert not [p.name for p in (run / "checkpoints").iterdir() if p.suffix], moment
    assert moments > 15
    assert cp.steps_of(run) == [2 if again else 3]  # the last one was not killed


class FaultPoints:
    """Counts what a process does to files while it saves, and kills it, by SIGKILL, before the action of one number."""

    def __init__(self, deadly: int) -> None:
        self.deadly, self.seen = deadly, 0

    def point(self) -> None:
        if self.seen == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1

    def install(self) -> None:
        """For the rest of this process, in all its threads."""
        for owner, name in ((os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (Path, "write_text")):  # fmt: skip
            real = getattr(owner, name)

            def call(*arguments: object, _real: Callable[..., object] = real, **named: object) -> object:
                self.point()
                return _real(*arguments, **named)

            setattr(owner, name, call)


def save_and_count(run: Path, deadly: int) -> None:
    """What a run does after step 3: a checkpoint in a thread, in two files of several writes; then the old ones go."""
    points = FaultPoints(deadly)
    points.install()

    def writer(folder: Path) -> None:
        for name in ("a.bin", "b.bin"):
            with (folder / name).open("wb") as file:
                for _ in range(4):  # killed here, a shard is half written
                    points.point()
                    file.write(b"3" * 50_000)
                    file.flush()

    saver = Saver(run, 1, background=True)
    saver.save(3, lambda: writer, PRINTS, {"samples": 15})
    saver.wait()
    (run / "points").write_bytes(str(points.seen).encode())


def in_a_process(run: Path, deadly: int) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=save_and_count, args=(run, deadly))
    process.start()
    process.join(60)
    return process.exitcode


def test_ten_sigkills_of_a_rank_that_saves(tmp_path: Path) -> None:
    """At random points of a save, in a real process: the newest complete checkpoint is there, and nothing of two mixed."""

    def begin(run: Path) -> Path:
        for step in (1, 2):
            cp.write_checkpoint(run, step, lambda f, s=step: (f / "a.bin").write_text(str(s) * 200_000), PRINTS)
        return run

    straight = begin(tmp_path / "straight")
    assert in_a_process(straight, -1) == 0 and cp.steps_of(straight) == [3]
    total = int((straight / "points").read_text())
    found_steps = []
    for deadly in sorted(random.Random(16).sample(range(total), 10)):
        run = begin(tmp_path / str(deadly))
        assert in_a_process(run, deadly) == -signal.SIGKILL, deadly
        cp.remove_unfinished(run)
        found = cp.find_resumable(run)
        assert found is not None and found[1] in (2, 3), (deadly, found)
        found_steps.append(found[1])
        for file in found[0].glob("*.bin"):
            assert file.read_bytes() == str(found[1]).encode() * 200_000, (deadly, file)
        assert len(list(found[0].glob("*.bin"))) == found[1] - 1
        assert not [p.name for p in found[0].parent.iterdir() if p.suffix], deadly
        assert in_a_process(run, -1) == 0 and cp.find_resumable(run) == (run / "checkpoints" / "step_3", 3)
    assert found_steps == sorted(found_steps) and {*found_steps} == {2, 3}  # before and after the rename


def test_kill_between_the_two_renames(tmp_path: Path) -> None:
    folder = write(tmp_path, 4)
    os.replace(folder, folder.with_name("step_4.old"))
    cp.remove_unfinished(tmp_path)
    assert cp.find_resumable(tmp_path) == (folder, 4)


def test_retention(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    assert cp.retain(tmp_path, 2, protected=[1, 3]) == [2]
    assert cp.steps_of(tmp_path) == [1, 3, 4, 5]
    assert cp.retain(tmp_path, 9) == []
    assert cp.retain(tmp_path, 1, newest=4) == [1, 3] and cp.steps_of(tmp_path) == [4, 5]
    for step in (1, 3):
        write(tmp_path, step)
    assert cp.retain(tmp_path, 0) == [1, 3, 4]  # at least one stays
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_5"]


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    assert cp.run_folder(tmp_path / "a" / "b", Path("tiny.yaml")).is_dir()
    (tmp_path / "file").touch()
    for name in ("file", "file/run"):
        with pytest.raises(ConfigError, match=rf"--run .*{name}: expected a folder that can be written to, found"):
            cp.run_folder(tmp_path / name, Path("tiny.yaml"))


def test_two_starts_in_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mtvl.checkpoint.time.strftime", lambda _form: "now")
    found = [cp.run_folder(None, Path("a/tiny.yaml")) for _ in range(3)]
    assert [str(run) for run in found] == ["runs/tiny-now", "runs/tiny-now-2", "runs/tiny-now-3"]
    assert cp.run_folder(found[0], Path("tiny.yaml")) == found[0] and os.readlink("runs/latest") == "tiny-now"


def test_the_link_that_another_start_makes_first_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cp.run_folder(None, Path("tiny.yaml"))

    def unlink(link: Path, missing_ok: bool = False) -> None:
        os.unlink(link)
        os.symlink("of-another", link)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert cp.run_folder(None, Path("tiny.yaml")).is_dir() and os.readlink("runs/latest") == "of-another"


def test_done_record(tmp_path: Path) -> None:
    assert cp.read_done(tmp_path) is None
    cp.write_done(tmp_path, 12, {"vqa": 51.5})
    assert cp.read_done(tmp_path) == {"step": 12, "metrics": {"vqa": 51.5}}
    assert [p.name for p in tmp_path.iterdir()] == ["DONE"]
