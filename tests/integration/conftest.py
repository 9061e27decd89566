"""What whole runs share: the smallest miniworld, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtvl.data.miniworld.write import ensure_miniworld


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of the smallest miniworld."""
    return ensure_miniworld(tmp_path_factory.mktemp("data") / "miniworld", size="tiny", progress=lambda _: None)
