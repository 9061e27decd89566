"""The objects that travel between rooms, and the legend of shape letters.

Shape letters used in all docstrings:
B batch rows, S source tokens, N pictures of a row (1 for a video), P grid cells of a picture or frame tokens of a
video, V visual tokens (after pooling), F feature width, D model width, T target tokens, R bottleneck width, K vocabulary entries,
A answers, C choices of a question, E width of contrasted features, Q places of a queue, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

KEEP = 100  # priority of a segment that is never truncated


@dataclass(frozen=True)
class Segment:
    """A named piece of source text. Segments are joined in order; the lowest `priority` loses tokens first."""

    name: str
    text: str
    priority: int = KEEP


@dataclass(frozen=True)
class Visual:
    """Reference to the visual input of an example: pictures in order, or one video, or neither.

    Paths are absolute. A path may name a file of stored features (.npz, .h5) in place of a picture or video. `span` are
    the seconds (start, end) of the video that matter; None means all of it.
    """

    images: tuple[str, ...] = ()
    video: str = ""
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Target:
    """One acceptable output text and its soft weight in (0, 1]."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Example:
    """One sample as text and paths: no tensors, no token ids.

    `uid` is unique within a split. `references` is what scoring needs (official annotation fields) and is never shown
    to the model. An example without targets can be predicted but not trained on. `choices` are the example's own answers
    to be ranked, called as in the task's `Decoding.choices`.
    """

    uid: str
    task: str
    segments: tuple[Segment, ...]
    visual: Visual
    targets: tuple[Target, ...] = ()
    references: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """The model's answer for the example `uid`; `scores` holds one number per choice when the task chooses."""

    uid: str
    text: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoding:
    """How an answer is produced.

    "generate" text; "choose" among the fixed texts `choices` by their first differing token; "rank" the example's own
    choices by likelihood and answer with the name of the best, from `choices`; "rank_list" a list of answers, the same for
    all examples: the `top` by the first token, of these the one whose whole text is likeliest; "retrieve" the picture or video of every
    text and the text of every picture, among all of a split: by cosine, then the `top` of each query again by the matching
    head, whose logit is added to `beta` times the cosine.

    The list is `choices`, or that of the JSON file `list_file` below the data root, or where neither is given the answers
    of the training split, the most frequent `list_size` of them (0: all). `smoothing`: label smoothing inside the
    likelihood by which a list is ranked (0: the likelihood itself).

    `max_tokens` counts generated ids including the decoder start id (and a prompt of the decoder), as transformers'
    `max_length` does; `min_tokens` those before which no answer ends.
    """

    mode: str = "generate"
    num_beams: int = 1
    max_tokens: int = 20
    min_tokens: int = 0
    no_repeat_ngram: int = 0
    early_stopping: bool = True
    choices: tuple[str, ...] = ()
    top: int = 128
    beta: float = 1.0
    list_file: str = ""
    list_size: int = 0
    smoothing: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Token limits of a task: source text and target text, special tokens included; 0 means no limit."""

    source_tokens: int = 0
    target_tokens: int = 0


@dataclass(frozen=True)
class Scores:
    """Result of scoring one split.

    `metrics` are named floats on the scale in which papers print them (0-100; CIDEr x 100). `per_item` is the primary
    metric per uid on the same scale: its mean equals the primary metric, or comes as near as a corpus metric allows.
    """

    primary: str
    metrics: Mapping[str, float]
    per_item: Mapping[str, float]


class Task(Protocol):
    """A benchmark: rows in, scores out. Knows no tokenizer, model, rank or optimizer."""

    name: str
    primary: str
    decoding: Decoding
    limits: Limits
    loss: str  # "sample_mean" (mean over tokens, then over the slot's samples), "token_mean" (over the slot's tokens),
    # "answers" (all answers by their weights, tokens summed, mean over the slot's samples), or "pairs" (contrast and
    # matching, mean over the slot's samples)
    label_smoothing: float

    def examples(self, split: str) -> Sequence[Example]:
        """All examples of `split` in file order; raises DataError, never drops a row silently."""

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Scores:
        """Score predictions of exactly the given examples (any order)."""

    def listed_answers(self) -> tuple[str, ...]:
        """The list that `decoding.mode` rank_list ranks, each text once."""

    def check_list(self) -> None:
        """DataError for a list that is named and cannot be read: found before training, not after."""


@dataclass
class Batch:
    """One micro-batch of one task; the same fields for every task.

    source_ids      (B, S) int64, right-padded
    source_mask     (B, S) bool, True where a text token stands
    features        (B, N, P, F) float: grid features before pooling, or the frame tokens of a video in order of time
                    (N = 1); N = 0 when the task has neither. Normalised pixels (P = H * W, F = 3) of pictures where
                    the tower is trained
    feature_mask    (B, N, P) bool, True where a feature stands; shorter videos are padded. All True unless given
    feature_kind    "grid" or "frame"
    choice_ids      (B, C, T) int64, the rows' own choices to be ranked, -100 where ignored; in training all answers of
                    the rows where the loss is "answers"; C = 0 else
    choice_weights  (B, C) float32, weights of these answers, 0 where a row has fewer; zeros for choices to be ranked
    target_ids      (B, T) int64, -100 where ignored; where the backbone answers from a list, T = 1 and the answer's place
                    in it
    target_weights  (B,) float32, soft weight of the target that was drawn
    answer_scores   (B, K) float32, weights of all targets over the backbone's list of answers: 0 for a wrong answer, -1
                    for one that is none of the task's; K = 0 where the backbone writes text
    item_ids        (B,) int64, equal where rows show the same pictures or video; each row its own unless given
    loss            "sample_mean" or "token_mean" over target tokens; "answers": the losses of all answers of a row, summed
                    over tokens, by their weights, a mean over the slot's samples; "pairs": contrast and matching of the
                    rows' texts with their pictures or videos, a mean over the slot's samples
    label_smoothing  share of a target token's weight that is spread over the vocabulary
    denominator     samples (or target tokens) of the whole slot over all ranks and micro-batches
    loss_weight     weight of the task's loss in the step
    parts           the batches of single tasks that were joined into this one (`mtvl.data.mixed`), for inference alone;
                    empty in a batch of one task. Features and choices stay in the parts, `task` is "" then
    """

    task: str
    uids: tuple[str, ...]
    source_ids: torch.Tensor
    source_mask: torch.Tensor
    features: torch.Tensor
    target_ids: torch.Tensor
    target_weights: torch.Tensor
    loss: str = "sample_mean"
    label_smoothing: float = 0.0
    denominator: float = 1.0
    loss_weight: float = 1.0
    feature_kind: str = "grid"
    feature_mask: torch.Tensor = None  # type: ignore[assignment]  # filled below
    choice_ids: torch.Tensor = None  # type: ignore[assignment]
    answer_scores: torch.Tensor = None  # type: ignore[assignment]
    item_ids: torch.Tensor = None  # type: ignore[assignment]
    choice_weights: torch.Tensor = None  # type: ignore[assignment]
    parts: tuple[Batch, ...] = ()

    def __post_init__(self) -> None:
        if self.choice_ids is None:
            self.choice_ids = self.target_ids.new_zeros((len(self.target_ids), 0, 0))
        if self.choice_weights is None:
            self.choice_weights = self.target_weights.new_zeros(self.choice_ids.shape[:2])
        if self.answer_scores is None:
            self.answer_scores = self.target_weights.new_zeros((len(self.target_ids), 0))
        if self.item_ids is None:
            self.item_ids = torch.arange(len(self.target_ids), device=self.target_ids.device)
        if self.feature_mask is None:
            self.feature_mask = torch.ones(self.features.shape[:3], dtype=torch.bool, device=self.features.device)

    def to(self, device: torch.device | str) -> Batch:
        """Copy with every tensor on `device`."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return Batch(**{**vars(self), **moved, "parts": tuple(part.to(device) for part in self.parts)})

    @property
    def row_tasks(self) -> tuple[str, ...]:
        """The task of every row."""
        return tuple(part.task for part in self.parts or (self,) for _ in part.uids)


def kind_owner(kind: str) -> str:
    """Owner of the parameters that only one kind of features, or of loss, uses; no task can be called so."""
    return f"{kind} features"


class Tokenizer(Protocol):
    """Text to ids and back. `wrap` adds the backbone's special tokens around plain ids."""

    pad_id: int
    eos_id: int
    num_special: int  # tokens that `wrap` adds

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without special tokens."""

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """`ids` with the special tokens that a source sequence of this backbone carries."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""


class Answers(Tokenizer, Protocol):
    """The answers that a backbone chooses from, in place of text: an answer is one id, its place in the list.

    `encode` gives no id for a text that is none of them.
    """

    def scores(self, task: str, targets: Sequence[Target]) -> np.ndarray:
        """(K,) float32, one number an answer: its weight among `targets`, 0 without one, -1 where it is none of the task's answers."""

    def are_exclusive(self, task: str) -> bool:
        """True when exactly one answer of the task is right, as among fixed choices."""


def wrap_target(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """`ids` as an answer: by the tokenizer's own `wrap_target`, or as a source where answers are wrapped alike."""
    wrapped: list[int] = getattr(tokenizer, "wrap_target", tokenizer.wrap)(ids)
    return wrapped


class ImageEncoder(Protocol):
    """A frozen visual tower as the feature store sees it; for pictures, or for single frames of videos."""

    fingerprint: str  # changes with weights, architecture and preprocessing
    grid: tuple[int, int]  # (P, F) of one picture or of one frame

    def encode(self, images: Sequence[Any]) -> torch.Tensor:
        """PIL pictures (RGB, any size) -> (len(images), P, F) float32 on the CPU."""
