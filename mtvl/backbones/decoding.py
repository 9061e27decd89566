"""Greedy and beam search over any step function with a key-value cache.

The rules follow the search of transformers 4.2.1, on which VL-Adapter's numbers rest: n-gram blocking acts on
log-probabilities without renormalising; a beam's score is its summed log-probability (EOS included) divided by its
length, where length counts the start id but not EOS; EOS is forced at the last position in beam search only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mtvl import dist
from mtvl.errors import ConfigError

# new ids (n, 1), or at first the start id with the prompt (n, L) -> logits (n, K) of the next; the closure owns the cache
Step = Callable[[torch.Tensor], torch.Tensor]
Reorder = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class SearchSettings:
    """`max_length` and `min_length` count the start id and the prompt; `no_repeat_ngram` 0 switches blocking off.

    `repetition_penalty` divides positive and multiplies negative scores of ids that stand in the sequence already
    (log-probabilities in a beam search, logits in a greedy one).
    """

    start_id: int
    eos_id: int
    pad_id: int
    max_length: int
    num_beams: int = 1
    no_repeat_ngram: int = 0
    early_stopping: bool = True
    force_eos: bool = True  # beam search only
    prompt: tuple[int, ...] = ()  # ids behind the start id that every answer begins with
    min_length: int = 0  # EOS comes not before
    repetition_penalty: float = 1.0


def _block_ngrams(scores: torch.Tensor, sequences: list[list[int]], size: int) -> None:
    """Set to -inf, in place, every token that would repeat an n-gram of its sequence. scores (n, K)."""
    for row, ids in enumerate(sequences):
        if len(ids) + 1 < size:
            continue
        tail = tuple(ids[len(ids) - size + 1 :])
        banned = [ids[i + size - 1] for i in range(len(ids) - size + 1) if tuple(ids[i : i + size - 1]) == tail]
        if banned:
            scores[row, banned] = -torch.inf


def _adjust(scores: torch.Tensor, ids: torch.Tensor, settings: SearchSettings) -> None:
    """Apply to scores (n, K), in place, what the settings say about ids (n, L) so far."""
    if settings.repetition_penalty != 1.0:
        seen = scores.gather(1, ids)
        seen = torch.where(seen < 0, seen * settings.repetition_penalty, seen / settings.repetition_penalty)
        scores.scatter_(1, ids, seen)
    if settings.no_repeat_ngram:
        _block_ngrams(scores, ids.tolist(), settings.no_repeat_ngram)
    if ids.shape[1] < settings.min_length:
        scores[:, settings.eos_id] = -torch.inf


def _first_ids(rows: int, settings: SearchSettings, device: torch.device) -> torch.Tensor:
    """Start id and prompt of every row (rows, 1 + prompt)."""
    return torch.tensor([settings.start_id, *settings.prompt], device=device).repeat(rows, 1)


@torch.no_grad()
def greedy(step: Step, rows: int, settings: SearchSettings, device: torch.device) -> torch.Tensor:
    """Most likely token at each position -> (rows, <= max_length) ids, right-padded."""
    ids, seen = _first_ids(rows, settings, device), 0
    open_rows = torch.ones(rows, dtype=torch.bool, device=device)
    while ids.shape[1] < settings.max_length:
        scores, seen = step(ids[:, seen:]), ids.shape[1]
        _adjust(scores, ids, settings)
        token = torch.where(open_rows, scores.argmax(-1), settings.pad_id)
        ids = torch.cat([ids, token[:, None]], dim=1)
        open_rows &= token != settings.eos_id
        if not dist.any_rank(bool(open_rows.any())):  # in lockstep a rank that is done adds padding
            break
    return ids


class _Finished:
    """The best finished hypotheses of one row."""

    def __init__(self, size: int, early_stopping: bool) -> None:
        self.size, self.early_stopping = size, early_stopping
        self.items: list[tuple[float, list[int]]] = []

    def add(self, ids: list[int], total: float) -> None:
        """`ids` with start id, without EOS."""
        score = total / len(ids)
        if len(self.items) < self.size or score > min(s for s, _ in self.items):
            self.items.append((score, ids))
            if len(self.items) > self.size:
                self.items.remove(min(self.items, key=lambda item: item[0]))

    def is_done(self, best_total: float, length: int) -> bool:
        """True when no open beam can still win."""
        if len(self.items) < self.size:
            return False
        return self.early_stopping or min(s for s, _ in self.items) >= best_total / length


@torch.no_grad()
def beam(
    step: Step, reorder: Reorder, rows: int, settings: SearchSettings, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Beam search -> (rows, <= max_length) ids right-padded, and (rows,) length-normalised scores.

    `step` sees rows * num_beams sequences; `reorder` receives the (rows * num_beams,) indices of the kept ones.
    """
    beams = settings.num_beams
    ids, seen = _first_ids(rows * beams, settings, device), 0
    totals = torch.zeros(rows, beams, device=device)
    totals[:, 1:] = -1e9  # all beams start equal: only the first may be expanded
    finished = [_Finished(beams, settings.early_stopping) for _ in range(rows)]
    done = [False] * rows
    while ids.shape[1] < settings.max_length and dist.any_rank(not all(done)):
        length = ids.shape[1]
        logits, seen = step(ids[:, seen:]).float(), length
        if settings.force_eos and length == settings.max_length - 1:
            forced = torch.full_like(logits, -torch.inf)
            forced[:, settings.eos_id] = 0.0
            logits = forced
        scores = torch.log_softmax(logits, dim=-1)
        _adjust(scores, ids, settings)
        vocab = scores.shape[-1]
        flat = (scores.view(rows, beams, vocab) + totals[:, :, None]).view(rows, beams * vocab)
        top, index = flat.topk(2 * beams, dim=1, largest=True, sorted=True)
        new_totals, new_tokens, new_sources = _advance(
            top.tolist(), index.tolist(), ids.tolist(), finished, done, vocab, settings
        )
        for row in range(rows):
            if not done[row]:
                done[row] = finished[row].is_done(float(top[row, 0]), length)
        source = torch.tensor(new_sources, dtype=torch.long, device=device)
        token = torch.tensor(new_tokens, dtype=torch.long, device=device)
        totals = torch.tensor(new_totals, device=device).view(rows, beams)
        ids = torch.cat([ids[source], token[:, None]], dim=1)
        reorder(source)
    return _finalise(ids, totals, finished, done, settings)


def _advance(
    top: list[list[float]], index: list[list[int]], sequences: list[list[int]], finished: list[_Finished],
    done: list[bool], vocab: int, settings: SearchSettings,
) -> tuple[list[float], list[int], list[int]]:  # fmt: skip
    """Split the 2 * beams candidates of every row into finished hypotheses and the next beams."""
    beams = settings.num_beams
    totals: list[float] = []
    tokens: list[int] = []
    sources: list[int] = []
    for row, (row_scores, row_index) in enumerate(zip(top, index, strict=True)):
        if done[row]:
            totals += [0.0] * beams
            tokens += [settings.pad_id] * beams
            sources += [row * beams] * beams
            continue
        kept = 0
        for place, (score, flat) in enumerate(zip(row_scores, row_index, strict=True)):
            source, token = row * beams + flat // vocab, flat % vocab
            if token == settings.eos_id:
                if place < beams:  # an EOS outside the best `beams` candidates does not count
                    finished[row].add(list(sequences[source]), score)
                continue
            totals.append(score)
            tokens.append(token)
            sources.append(source)
            kept += 1
            if kept == beams:
                break
    return totals, tokens, sources


def _finalise(
    ids: torch.Tensor, totals: torch.Tensor, finished: list[_Finished], done: list[bool], settings: SearchSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    beams = settings.num_beams
    sequences = ids.tolist()
    best: list[tuple[float, list[int]]] = []
    for row, bank in enumerate(finished):
        if not done[row]:
            for b in range(beams):
                bank.add(sequences[row * beams + b], float(totals[row, b]))
        best.append(max(bank.items, key=lambda item: item[0]))
    width = min(max(len(s) for _, s in best) + 1, settings.max_length)
    out = torch.full((len(best), width), settings.pad_id, dtype=torch.long, device=ids.device)
    for row, (_, sequence) in enumerate(best):
        out[row, : len(sequence)] = torch.tensor(sequence, device=ids.device)
        if len(sequence) < settings.max_length:
            out[row, len(sequence)] = settings.eos_id
    return out, torch.tensor([score for score, _ in best], device=ids.device)


def first_token_scores(
    decode: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, choices: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Log-probability (B, C) of each choice's first token that tells the choices (wrapped target ids) apart.

    `decode`: target ids (B, T) -> logits (B, T, K), on the memory whose states are `hidden` (B, ...). ConfigError for
    choices that two or more tokens are needed to tell apart.
    """
    prefix = 0
    while len({tuple(c[: prefix + 1]) for c in choices}) == 1:
        prefix += 1
    first = [c[prefix] for c in choices]
    if len(set(first)) != len(first):
        raise ConfigError(f"choices {choices} do not differ in one token after a common start")
    target = torch.tensor([list(choices[0][: prefix + 1])], device=hidden.device)
    logits = decode(target.expand(hidden.shape[0], -1))[:, prefix]
    return torch.log_softmax(logits.float(), dim=-1)[:, first]
