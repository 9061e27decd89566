"""What ranks must have in common before they train; `engine/test_engine.py` compares recipes on real ranks."""

from __future__ import annotations

from typing import Any

import pytest

from mtvl import dist
from mtvl.agreement import check_identity
from mtvl.errors import EngineError

IDENTITY = {"base": "b1", "number of examples": '{"vqa": 9}', "examples": "d1", "backbone": "{}"}


def test_ranks_with_other_data_or_weights_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_rank(**changes: str) -> None:
        def gather(own: Any) -> list[Any]:
            return [own, {key: changes.get(key, value) for key, value in own.items()}]

        monkeypatch.setattr(dist, "gather_objects", gather)

    check_identity(IDENTITY)
    other_rank(examples="d2", backbone="another folder")
    check_identity(IDENTITY)
    other_rank(**{"number of examples": '{"vqa": 8}'})
    with pytest.raises(
        EngineError, match=r"'number of examples'; rank 0: \{\"vqa\": 9\}; rank 1: \{\"vqa\": 8\}; give"
    ):
        check_identity(IDENTITY)
    other_rank(base="b2")
    with pytest.raises(EngineError, match=r"differ in 'base'; rank 0: b1; rank 1: b2"):
        check_identity(IDENTITY)
