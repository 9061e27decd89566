"""A fixed list of answers in place of written text, and the head that scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from mtvl.types import Target

NO_ANSWER = -1  # an id, and the score of what is none of a task's answers


class AnswerList:
    """The answers of all tasks, each once: an `Answers` of `mtvl.types`. An answer's id is its place in the list.

    `of_task` holds each task's answers, best known first; a task that is not there may give any answer. `exclusive` are
    the tasks of whose answers exactly one is right. `size` is the number of places, some of which may be left empty.
    """

    pad_id = eos_id = NO_ANSWER
    num_special = 0

    def __init__(self, of_task: Mapping[str, Sequence[str]], exclusive: Sequence[str] = (), size: int = 0) -> None:
        self.names = tuple(dict.fromkeys(name for names in of_task.values() for name in names))
        self.size = size or len(self.names)
        self._place = {name: place for place, name in enumerate(self.names)}
        self._exclusive = frozenset(exclusive)
        self._wrong = {task: self._no_scores(names) for task, names in of_task.items()}
        self._wrong_of_others = self._no_scores(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def _no_scores(self, names: Sequence[str]) -> np.ndarray:
        scores = np.full(self.size, NO_ANSWER, dtype=np.float32)
        scores[[self._place[name] for name in names]] = 0
        return scores

    def encode(self, text: str) -> list[int]:
        """The answer's id, or none."""
        place = self._place.get(text)
        return [] if place is None else [place]

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """`ids` as they are."""
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The answer at the last of `ids` that is one; what stands before it is the search's start."""
        found = [i for i in ids if 0 <= i < len(self.names)]
        return self.names[found[-1]] if found else ""

    def scores(self, task: str, targets: Sequence[Target]) -> np.ndarray:
        """As `mtvl.types.Answers`; empty places of the list count as answers of no task."""
        scores = self._wrong.get(task, self._wrong_of_others).copy()
        for target in targets:
            place = self._place.get(target.text, NO_ANSWER)
            if place >= 0 and scores[place] >= 0:
                scores[place] = target.weight
        return scores

    def are_exclusive(self, task: str) -> bool:
        """As `mtvl.types.Answers`."""
        return task in self._exclusive


class AnswerHead(nn.Module):
    """out(norm(gelu(hidden(pool(first))))): scores of K answers from the first token's state.

    *Source:* CLIP-ViL's pooler, which has no tanh, and its answer head, twice as wide as the model.
    """

    def __init__(self, d_model: int, num_answers: int, eps: float) -> None:
        super().__init__()
        self.pool = nn.Linear(d_model, d_model)
        self.hidden = nn.Linear(d_model, 2 * d_model)
        self.norm = nn.LayerNorm(2 * d_model, eps=eps)
        self.out = nn.Linear(2 * d_model, num_answers)

    def forward(self, first: torch.Tensor) -> torch.Tensor:
        """(B, D) -> (B, K)."""
        return self.out(self.norm(nn.functional.gelu(self.hidden(self.pool(first)))))
