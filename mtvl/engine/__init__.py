"""The engine: DeepSpeed under the rules of this project (idle tasks, finite checks, exact resume)."""

from mtvl.engine.core import Engine, StepReport
from mtvl.engine.partitioned import Partitioned
from mtvl.engine.process import finish, peak_memory, start

__all__ = ["Engine", "Partitioned", "StepReport", "finish", "peak_memory", "start"]
