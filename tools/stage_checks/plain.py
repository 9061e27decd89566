"""A run in plain PyTorch: no DeepSpeed, no engine, no optimizer of this project; whole slots on one process."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import get_linear_schedule_with_warmup

from mtvl.config import RunConfig
from mtvl.data.schedule import Schedule
from mtvl.loader import Loader
from mtvl.model import Model, build_model
from mtvl.optim import parameter_groups
from mtvl.tasks import TASKS_DIR
from mtvl.tasks.visual import with_visual
from mtvl.workspace import Workspace


def train_plainly(config: RunConfig, folder: Path) -> None:
    """Train the recipe `config` (adamw, linear schedule) and leave log and trained tensors in `folder` as a run does.

    Absent tasks have gradients None, which torch's AdamW skips. Which rows a step takes, and how rows become a batch,
    is the project's: the comparison is of training.
    """
    config = with_visual(config, TASKS_DIR)
    model = build_model(config).train()
    loader = _loader(config, model)
    parameters = model.trainable()
    groups = [
        {
            "params": [parameters[n] for n in g.names],
            "weight_decay": config.optim.weight_decay if g.decay else 0.0,
            "lr": config.optim.lr * g.scale,
        }
        for g in parameter_groups(parameters, model.tasks_of_parameters(), config.optim, model.added())
    ]
    steps = config.train.steps
    optimizer = torch.optim.AdamW(groups, betas=config.optim.betas, eps=config.optim.eps)
    schedule = get_linear_schedule_with_warmup(optimizer, int(config.optim.warmup_ratio * steps), steps)
    folder.mkdir(parents=True)
    with (folder / "log.jsonl").open("w") as log:
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for batch in loader.step(step):
                model.set_task(batch.task)
                loss = model(batch)
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(parameters.values(), config.optim.clip_norm or float("inf"))
            optimizer.step()
            schedule.step()
            log.write(json.dumps({"step": step + 1, "loss": total}) + "\n")
    (folder / "export").mkdir()
    tensors = {name: p.detach().contiguous() for name, p in parameters.items()}
    save_file(tensors, str(folder / "export" / "adapter.safetensors"))


def _loader(config: RunConfig, model: Model) -> Loader:
    """The rows of the run, as `mtvl.train.Run` reads them."""
    workspace = Workspace(config, model.backbone, say=lambda _text: None)
    workspace.prepare([(task, "train") for task in config.tasks])
    examples = {task: workspace.examples(task, "train") for task in config.tasks}
    sizes = {task: len(rows) for task, rows in examples.items()}
    lengths = {task: [sum(len(s.text) for s in e.segments) for e in rows] for task, rows in examples.items()}
    schedule = Schedule(sizes, config.mixture, config.train.global_batch, config.seed, lengths=lengths)
    return Loader(examples, workspace.tasks, schedule, workspace.collator, config, 0, 1)
