"""Start scripts as forks of a process that has imported the libraries: that takes longer than most of what ranks do.

Each request, a line of JSON, is one script; the answers are its process id and, when it has ended, its exit code.
Usage (started by tests/distributed.py): forked_rank.py REQUESTS ANSWERS    two open descriptors
"""

from __future__ import annotations

import json
import os
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401
import numpy as np

import mtvl.backbones.clip_bart
import mtvl.evaluate
import mtvl.train  # noqa: F401


def become(request: dict[str, Any]) -> None:
    """Be the script, in its own environment and with its own output, as if Python had been started with it."""
    os.environ.clear()
    os.environ.update(request["environment"])
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    random.seed()  # processes that are started do not share this either
    np.random.seed()
    sys.argv = [request["script"], *request["arguments"]]
    sys.path[0] = str(Path(request["script"]).parent)
    runpy.run_path(request["script"], run_name="__main__")


def main() -> None:
    """Serve until the requests end; a fork leaves this loop and ends as its script does."""
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        sys.exit(f"a fork has no copy of the {threads - 1} threads that an import has started")
    sys.stdout.flush()  # what an import has printed is not the script's
    sys.stderr.flush()
    with open(int(sys.argv[1])) as requests, open(int(sys.argv[2]), "w", buffering=1) as answers:
        for line in requests:
            process = os.fork()
            if process == 0:
                requests.close()
                answers.close()
                return become(json.loads(line))
            print(process, file=answers)
            print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), file=answers)
    return None


if __name__ == "__main__":
    main()
