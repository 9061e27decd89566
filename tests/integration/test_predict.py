"""`mtvl predict` on a task of one's own whose folder has moved since the export was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mtvl.cli import DEFAULT_RECIPE, run_predict
from mtvl.config import load_run_config
from mtvl.errors import ConfigError
from mtvl.export import write_export
from mtvl.model import build_model

TASK = """\
kind: answer
primary: accuracy
prompt: "vqa: "
limits: {source_tokens: 0, target_tokens: 0}
decoding: {mode: generate, num_beams: 1, max_tokens: 4}
loss: sample_mean
sources:
  - format: own_table
    files:
      train:
        rows: [mine/train.jsonl]
    pictures:
      - mine/pictures/{name}
"""


def test_an_own_task_that_moved_is_found_with_an_override(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, picture = tmp_path / "old", tmp_path / "new", tmp_path / "p.png"
    (old / "tasks").mkdir(parents=True)
    (old / "tasks" / "mine.yaml").write_text(TASK)
    Image.new("RGB", (32, 32), (200, 30, 30)).save(picture)
    config = load_run_config(DEFAULT_RECIPE, ["mine"], [f"data.root={old}", f"data.cache={tmp_path / 'cache'}"])
    write_export(tmp_path / "export", build_model(config), config)
    old.rename(new)
    arguments = ["--checkpoint", str(tmp_path / "export"), "--task", "mine", "--image", str(picture), "--text", "what?"]
    with pytest.raises(ConfigError, match="mine"):
        run_predict(arguments)
    assert run_predict([*arguments, f"data.root={new}"]) == 0
    assert capsys.readouterr().out
    with pytest.raises(ConfigError, match="evaluate.batch"):
        run_predict([*arguments, f"data.root={new}", "evaluate.batch=0"])
