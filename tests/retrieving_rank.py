"""One of some ranks of a retrieval evaluation; prints what it encoded and what it found."""

from __future__ import annotations

import json
import os

import torch.distributed as dist
from test_retrieving import Stub, build, examples

from mtvl.retrieving import retrieve
from mtvl.types import Decoding


def main() -> None:
    dist.init_process_group("gloo")
    stub = Stub()
    found = retrieve(build().double(), "find", Decoding(mode="retrieve", top=3, beta=0.7), examples(), stub, 4, "cpu")
    print(json.dumps({"rank": os.environ["RANK"], "shown": stub.shown, "found": [[p.uid, p.text, dict(p.scores)] for p in found]}))  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
