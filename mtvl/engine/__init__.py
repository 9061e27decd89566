"""The engine: DeepSpeed under the rules of this project (idle tasks, finite checks, exact resume)."""

from mtvl.engine.core import Engine, StepReport
from mtvl.engine.partitioned import Partitioned
from mtvl.engine.process import finish, peak_memory, start
from mtvl.engine.stopping import StopFlag
from mtvl.engine.watch import Watchdog, lost_ranks_named
from mtvl.signals import STOPPED_BY_SIGNAL

__all__ = [
    "STOPPED_BY_SIGNAL", "Engine", "Partitioned", "StepReport", "StopFlag", "Watchdog", "finish", "lost_ranks_named",
    "peak_memory", "start",
]  # fmt: skip
