"""The processes that train the cells, and the folder in which they leave what they measured, cell by cell."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from mtvl.errors import ConfigError, MtvlError
from mtvl.signals import STOPPED_BY_SIGNAL, handled
from stage_checks.cells import Cell, Row

GRACE_SECONDS = 20.0  # that the other ranks have to end with their own message when one has failed


def row_file(folder: Path, cell: Cell) -> Path:
    """Where a cell's measurement is kept."""
    return folder / "cells" / f"{cell.name}.json"


def write_row(folder: Path, row: Row) -> None:
    """Keep a measurement: whole or not at all."""
    file = row_file(folder, Cell.parse(row.cell))
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(".half")
    half.write_text(json.dumps(asdict(row), indent=1))
    half.replace(file)


def read_row(folder: Path, cell: Cell) -> Row | None:
    """A measurement that is there. ConfigError when its file holds something else."""
    file = row_file(folder, cell)
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        return Row(**{**content, "problems": tuple(content["problems"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{file}: expected what a cell measured, found {error}; delete the file to measure it again"
        ) from None


def claim(folder: Path, steps: int, overrides: Sequence[str]) -> None:
    """Make the folder, or go on in one that was made with the same settings. ConfigError when they were others."""
    settings = {"steps": steps, "overrides": list(overrides)}
    file = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
        has_trained = any(entry.is_dir() for entry in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be the folder of the cells: {error}; name another") from None
    if not is_empty and not file.is_file():
        raise ConfigError(f"{folder} holds other files; expected an empty folder or one of this tool's")
    if has_trained and (found := json.loads(file.read_text())) != settings:
        raise ConfigError(f"{folder} holds runs that were made with {found}, expected {settings}; name another folder")
    file.write_text(json.dumps(settings, indent=1))


def work(folder: Path, cells: Sequence[Cell], plain: Sequence[str], steps: int, overrides: Sequence[str]) -> None:
    """On a rank of a launch: train the plain runs and the cells of this world size one after the other."""
    import torch

    from mtvl import dist
    from mtvl.engine import finish, start
    from stage_checks import runs
    from stage_checks.steps import check

    torch.set_num_threads(1)
    start("cpu")
    for method in plain:
        runs.run_plainly(folder, method, steps, overrides)
    for cell in cells:
        if cell.micro:
            runs.run(folder, cell, steps, overrides)
            if dist.is_main():
                write_row(folder, runs.compare(folder, cell))
        else:
            row = check(folder, cell)
            if dist.is_main():
                write_row(folder, row)
    finish(0)


def launch(folder: Path, world: int, command: Sequence[str]) -> None:
    """Run `command` on `world` ranks of this machine. MtvlError with the end of their log when one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        **os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    log = folder / f"world{world}.log"
    with log.open("w") as file:
        ranks = [
            subprocess.Popen(
                command, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=file, stderr=subprocess.STDOUT
            )
            for r in range(world)
        ]
        try:
            with handled((signal.SIGTERM,), stop):
                wait(ranks)
        finally:
            for rank in ranks:
                rank.kill()
    if any(codes := [rank.wait() for rank in ranks]):
        raise MtvlError(
            f"the launch of {world} processes ended with {codes}; {log} ends with\n{log.read_text()[-4000:]}"
        )


def stop(_number: int, _frame: object) -> NoReturn:
    """End with the ranks; what was measured is kept."""
    raise SystemExit(STOPPED_BY_SIGNAL)


def wait(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, or the others had their time after one has failed."""
    deadline = float("inf")
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        if any(rank.poll() for rank in ranks):
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        time.sleep(0.1)
