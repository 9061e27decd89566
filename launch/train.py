"""`deepspeed launch/train.py ...`; the same file runs under torchrun, srun and plain python."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtvl.cli import program  # noqa: E402

if __name__ == "__main__":
    program(["train", *sys.argv[1:]])
