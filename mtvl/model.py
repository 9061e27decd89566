"""The model that is trained: a backbone with a plan applied, and the loss of one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from mtvl.backbones import BACKBONES
from mtvl.config import PairsConfig, RunConfig, parse_section
from mtvl.errors import ConfigError, PlanError
from mtvl.objectives.answers import soft_answer_losses
from mtvl.objectives.seq2seq import answers_sum, label_losses, loss_sum, token_losses
from mtvl.petl import METHODS
from mtvl.petl.apply import apply_plan, merge_plan, owner_of, unmerge_plan
from mtvl.petl.plan import Plan
from mtvl.steps.answering import rank_answers
from mtvl.steps.pairs import PairsLoss
from mtvl.steps.retrieval import check_frame_rule, ground
from mtvl.tasks import TASKS_DIR
from mtvl.tasks.visual import with_visual
from mtvl.types import Batch, Decoding, kind_owner


class Model(nn.Module):
    """`forward(batch)` is the batch's share of its slot's loss; `set_task` chooses task-private parameters."""

    def __init__(self, backbone: Any, plan: Plan, method: Any, seed: int = 0) -> None:
        super().__init__()
        self.plan = plan
        self.trained_tower = ""  # fingerprint of the tower whose features it was trained on, once it is known
        self.active = apply_plan(backbone, plan, method, seed)
        self.backbone = backbone
        self.is_merged = False
        self.pairs: PairsLoss | None = None
        rule = getattr(backbone.config, "frame_weights", "off")
        if rule != "off":
            check_frame_rule(backbone, rule)
            backbone.grounding = partial(ground, rule=rule)

    def begin_pairs(self, config: PairsConfig, rows: str = "") -> None:
        """Give the model what tasks on pairs train with: a queue and a teacher of what is trained now. `rows`: those of a
        micro-batch, in words.

        ConfigError for a backbone without heads of contrast and matching.
        """
        if not self.backbone.has_pairs:
            raise ConfigError(
                "a task of this run matches pictures with texts, for which the backbone needs heads of contrast and matching; "
                "set backbone.name=blip with backbone.kind joint, retrieval or pretrain"
            )
        self.pairs = PairsLoss(self.backbone, config, rows)

    @property
    def pair_rows(self) -> str:
        """Rows of a micro-batch of pairs, in words; "" where there are none."""
        return "" if self.pairs is None else self.pairs.rows

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Range of every parameter that has one, while it is trained."""
        return {} if self.pairs is None else {f"backbone.{n}": between for n, between in self.pairs.bounds.items()}

    def set_task(self, name: str) -> None:
        """Make `name` the active task until the next call (recompute in backward included); PlanError without parts for it."""
        if self.plan.is_task_private and name not in self.plan.tasks:
            raise PlanError(f"this model has parts for {', '.join(self.plan.tasks)} only, not for {name!r}")
        if self.is_merged and self.plan.is_task_private and name != self.active.name:
            raise PlanError(
                f"the adapters of {self.active.name!r} are merged into this model; unmerge it to run {name!r}"
            )
        self.active.set(name)

    def set_rows(self, tasks: Sequence[str]) -> None:
        """Make `tasks[i]` the task of row i of the next batches, for inference on batches that mix tasks by example."""
        for name in dict.fromkeys(tasks):
            self.set_task(name)
        if self.plan.is_task_private:  # else one pass serves all rows
            self.active.set_rows(tasks)

    def merge(self, task: str = "") -> None:
        """Fold the adapters (of `task`, where there are private ones) into the backbone, for inference at its cost.

        Raises PlanError when the method's adapters are no change of linear maps, or the model is merged already.
        """
        if self.is_merged:
            raise PlanError("this model is merged already; unmerge it first")
        if task or self.plan.is_task_private:
            self.set_task(task)
        merge_plan(self.backbone, self.plan)
        self.is_merged = True
        self.eval()

    def unmerge(self) -> None:
        """Give the backbone its own parameters back, bit for bit; nothing happens to a model that is not merged."""
        if not self.is_merged:
            return
        unmerge_plan(self.backbone, self.plan)
        self.is_merged = False

    def train(self, mode: bool = True) -> Model:
        """As torch's; PlanError for training a merged model, whose adapters would get no gradient."""
        if mode and self.is_merged:
            raise PlanError("a merged model cannot be trained; unmerge it first")
        return super().train(mode)

    def forward(self, batch: Batch, action: Callable[[], None] | None = None) -> torch.Tensor:
        """loss_weight * loss numerator / denominator: summed over a slot's micro-batches and ranks, the slot's loss.

        With an `action` that alone is called: what it runs of the model is then a part of one forward pass of DeepSpeed's,
        in which partitioned weights are found.
        """
        if action is not None:
            action()
            return batch.target_weights
        if batch.parts:
            raise PlanError("a batch that mixes tasks by example is for inference; train on batches of one task")
        if batch.loss == "pairs":
            if self.pairs is None:
                raise PlanError(
                    "this model was not prepared for pairs; call begin_pairs before its first batch of them"
                )
            return self.pairs(self.backbone, batch) * (batch.loss_weight / batch.denominator)
        memory = self.backbone.encode(batch)
        if batch.answer_scores.shape[1] and not self.backbone.answers.are_exclusive(batch.task):
            total = soft_answer_losses(self.backbone.answer_logits(memory), batch.answer_scores).sum()
            return total * (batch.loss_weight / batch.denominator)
        if batch.loss == "answers":
            return self._all_answers(batch, memory) * (batch.loss_weight / batch.denominator)
        logits = self.backbone.label_logits(memory, batch.target_ids)
        losses = label_losses(logits, batch.target_ids, batch.label_smoothing)
        total = loss_sum(losses, batch.target_ids, batch.target_weights, batch.loss)
        return total * (batch.loss_weight / batch.denominator)

    def _all_answers(self, batch: Batch, memory: Any) -> torch.Tensor:
        """Numerator of the loss of all weighted answers of each row: scalar. The input is encoded once a row."""
        is_there = batch.choice_weights > 0
        is_there[:, 0] |= ~is_there.any(1)  # a row that counts for nothing runs all the same: ranks take equal passes
        rows, places = is_there.nonzero(as_tuple=True)
        ids = batch.choice_ids[rows, places]
        logits = self.backbone.label_logits(memory.select(rows.tolist()), ids)
        return answers_sum(label_losses(logits, ids, batch.label_smoothing), batch.choice_weights[rows, places])

    def logits(self, batch: Batch) -> torch.Tensor:
        """Teacher-forced logits (B, T, K)."""
        return self.backbone.decode(self.backbone.encode(batch), batch.target_ids)

    @torch.no_grad()
    def encode(self, batch: Batch) -> Any:
        """The backbone's memory of `batch`; of one that mixes tasks, each row under its own task, which then stay set."""
        if batch.parts and self.backbone.encodes_parts:
            memories = []
            for part in batch.parts:
                self.set_task(part.task)
                memories.append(self.backbone.encode(part))
            self.set_rows(batch.row_tasks)
            return memories[0].join(memories)
        if batch.parts:
            self.set_rows(batch.row_tasks)
        return self.backbone.encode(batch)

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding, memory: Any = None) -> torch.Tensor:
        """Token ids (B, <= max_tokens) of the answers. `memory`: the batch's own, where it has been encoded before."""
        return self.backbone.generate(self.encode(batch) if memory is None else memory, decoding)[0]

    @torch.no_grad()
    def choose(self, batch: Batch, choices: Sequence[Sequence[int]], memory: Any = None) -> torch.Tensor:
        """Scores (B, C) of wrapped choices."""
        return self.backbone.choose(self.encode(batch) if memory is None else memory, choices)

    @torch.no_grad()
    def rank(self, batch: Batch, memory: Any = None) -> torch.Tensor:
        """Mean log-likelihood per token (B, C) of each row's own choices; the input is encoded once."""
        rows, count, width = batch.choice_ids.shape
        ids = batch.choice_ids.view(rows * count, width)
        memory = self.encode(batch) if memory is None else memory
        losses = token_losses(self.backbone.decode(memory.repeat(count), ids), ids)
        return -(losses.sum(1) / (ids != -100).sum(1).clamp(min=1)).view(rows, count)

    @torch.no_grad()
    def rank_list(
        self, batch: Batch, answers: Sequence[Sequence[int]], decoding: Decoding, memory: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Places in a list of wrapped `answers` (B, top) and their scores (B, top) for every row, as `decoding` says."""
        memory = self.encode(batch) if memory is None else memory
        return rank_answers(self.backbone.decode, memory, answers, decoding.top, smoothing=decoding.smoothing)[:2]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def added(self) -> set[str]:
        """Names of the trained parameters that are new: the method's and a head's; the others came with the backbone."""
        added = set(owner_of(self.plan))
        heads = [site.path for site in self.plan.unfrozen if site.kind == "answers"]
        added |= {f"{path}.{n}" for path in heads for n, _ in self.backbone.get_submodule(path).named_parameters()}
        return {n for n in self.trainable() if n.removeprefix("backbone.") in added}

    def tower_parameters(self) -> frozenset[str]:
        """Names of the trained parameters of the visual tower; it has optimizer settings of its own."""
        paths = [f"backbone.{site.path}" for site in self.plan.unfrozen if site.kind == "tower"]
        return frozenset(
            f"{path}.{n}" for path in paths for n, _ in self.get_submodule(path).named_parameters(recurse=False)
        )

    def tasks_of_parameters(self) -> dict[str, str | None]:
        """Task that owns each trained parameter; None where it is shared by all.

        What only one kind of batch trains (`parts_of_kinds`: a projection of frames, heads of contrast) belongs to that
        kind (`kind_owner`): it is idle in the steps of the others, and has to stand still there as a task's parts do.
        """
        owners: dict[str, str | None] = dict(owner_of(self.plan))
        names = {n: n.removeprefix("backbone.") for n in self.trainable()}
        for begin, kind in self.backbone.parts_of_kinds().items():
            owners |= {name: kind_owner(kind) for name in names.values() if name.startswith(begin)}
        return {n: owners.get(name) for n, name in names.items()}


def make_method(petl: dict[str, Any], *, paper_compat: bool = False) -> Any:
    """The configured method object of a recipe's `petl` section."""
    cls = METHODS.load(str(petl.get("name", "")))
    return cls(parse_section(cls.Config, petl, "petl"), paper_compat=paper_compat)


def make_backbone(section: dict[str, Any], *, meta: bool = False) -> Any:
    """The backbone of a recipe's `backbone` section; with `meta` shapes only."""
    cls = BACKBONES.load(str(section.get("name", "")))
    return cls.build(parse_section(cls.Config, section, "backbone"), meta=meta)


def make_plan(config: RunConfig, backbone: Any | None = None) -> Plan:
    """The plan of a recipe, from configurations alone unless a built backbone is given."""
    backbone = make_backbone(with_visual(config, TASKS_DIR).backbone, meta=True) if backbone is None else backbone
    return _plan_of(make_method(config.petl, paper_compat=config.paper_compat), backbone, config.tasks)


def _plan_of(method: Any, backbone: Any, tasks: tuple[str, ...]) -> Plan:
    """The method's plan; a tower that trains and a head over a list of answers go with any method."""
    plan: Plan = method.plan(backbone.sites(), tasks)
    always = tuple(site for site in plan.sites if site.kind in ("tower", "answers") and site not in plan.unfrozen)
    return replace(plan, unfrozen=plan.unfrozen + always) if always else plan


def build_model(config: RunConfig, *, meta: bool = False) -> Model:
    """Backbone with weights (with `meta` shapes only), plan applied, everything else frozen."""
    backbone = make_backbone(with_visual(config, TASKS_DIR).backbone, meta=meta)
    method = make_method(config.petl, paper_compat=config.paper_compat)
    model = Model(backbone, _plan_of(method, backbone, config.tasks), method, config.seed)
    backbone.set_recompute(config.train.recompute, model.active.recompute_contexts)
    return model
