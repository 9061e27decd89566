"""One optimizer step of a toy on every rank, then an end of the kind that the argument names.

end: all ranks finish. raise: rank 1 fails and ends in order. kill: rank 1 is killed without a chance to clean up.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
from toy_model import TASKS, Toy, split, toy_groups, toy_slot

from mtvl import dist
from mtvl.config import OptimConfig, RunConfig, TrainConfig
from mtvl.engine import Engine, finish, start


def main(end: str) -> None:
    """Train and end."""
    torch.set_num_threads(1)
    start("cpu")
    model = Toy()
    config = RunConfig(
        tasks=TASKS, train=TrainConfig(steps=1, global_batch=4, micro_batch=2), optim=OptimConfig(name="sgd")
    )
    engine = Engine(model, toy_groups(model), config, micro_steps=1)
    report = engine.train_step(0, split([toy_slot(0, "a", 4)], dist.rank(), dist.world_size(), 1))
    print(f"step done, loss {report.loss:.6f}", flush=True)
    dist.barrier()
    if dist.rank() == 1 and end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    finish(int(dist.rank() == 1 and end == "raise"))


if __name__ == "__main__":
    main(sys.argv[1])
