"""A rank that meets the others, makes the segment that some versions of DeepSpeed make, and ends."""

from __future__ import annotations

from mtvl import dist
from mtvl.engine import finish, start
from mtvl.engine.process import SHARED_MEMORY, shared_memory_name

if __name__ == "__main__":
    start("cpu")
    dist.barrier()
    (SHARED_MEMORY / shared_memory_name()).write_bytes(b"x")
    print(shared_memory_name())
    finish(0)
