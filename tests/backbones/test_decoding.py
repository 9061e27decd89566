"""The searches against exhaustive enumeration over toy language models whose next token depends on the last one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mtvl.backbones.decoding import SearchSettings, beam, greedy

START, PAD, EOS = 0, 1, 2
CPU = torch.device("cpu")


class Toy:
    """`rows` Markov chains over `size` tokens; counts its calls and checks that histories follow the beams."""

    def __init__(self, seed: int, rows: int, size: int = 5, beams: int = 1, scale: float = 1.5) -> None:
        random = torch.Generator().manual_seed(seed)
        self.tables = torch.randn(rows, size, size, generator=random) * scale
        self.tables[:, :, PAD] = -30.0
        self.beams, self.calls = beams, 0
        self.history = torch.zeros(rows * beams, 0, dtype=torch.long)

    def step(self, last: torch.Tensor) -> torch.Tensor:
        """Logits (rows * beams, size); the history is what a key-value cache would hold."""
        self.calls += 1
        self.history = torch.cat([self.history, last], dim=1)
        row = torch.arange(len(last)) // self.beams
        return self.tables[row, last[:, 0]].clone()

    def reorder(self, source: torch.Tensor) -> None:
        """Follow the kept beams."""
        self.history = self.history[source]

    def log_prob(self, row: int, ids: list[int]) -> float:
        """Sum of log-probabilities of ids[1:]."""
        table = torch.log_softmax(self.tables[row].double(), dim=-1)
        return sum(float(table[a, b]) for a, b in itertools.pairwise(ids))


def settings(**changes) -> SearchSettings:
    return SearchSettings(START, EOS, PAD, **{"max_length": 5, "early_stopping": False, **changes})


def repeats(ids: list[int], size: int) -> bool:
    grams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return len(grams) != len(set(grams))


def best_by_enumeration(
    toy: Toy, row: int, length: int, ngram: int = 0, force: bool = True
) -> tuple[float, list[list[int]]]:
    """Highest log-probability / length over all sequences, and which have it (the order of transitions does not matter
    to a chain). EOS is free at the last position when forced."""
    words = [t for t in range(toy.tables.shape[-1]) if t != EOS]
    found: list[tuple[float, list[int]]] = []
    for size in range(length):
        for middle in itertools.product(words, repeat=size):
            ids = [START, *middle]
            if ngram and repeats(ids, ngram):
                continue
            total = toy.log_prob(row, ids)
            if len(ids) < length - 1 or (len(ids) == length - 1 and not force):
                if not (ngram and repeats([*ids, EOS], ngram)):
                    found.append(((total + toy.log_prob(row, [ids[-1], EOS])) / len(ids), [*ids, EOS]))
            elif len(ids) == length - 1:
                found.append((total / len(ids), [*ids, EOS]))
            elif not force:
                found.append((total / len(ids), ids))
    best = max(found)[0]
    return best, [ids for score, ids in found if score > best - 1e-9]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("ngram", "force"), [(0, True), (2, True), (0, False)])
def test_a_wide_beam_finds_the_best_sequence(seed, ngram, force) -> None:
    rows, beams = 3, 200
    toy = Toy(seed, rows, beams=beams)
    ids, scores = beam(
        toy.step, toy.reorder, rows, settings(num_beams=beams, no_repeat_ngram=ngram, force_eos=force), CPU
    )
    for row in range(rows):
        score, expected = best_by_enumeration(toy, row, 5, ngram, force)
        assert float(scores[row]) == pytest.approx(score, abs=1e-5)
        assert ids[row].tolist() in [(each + [PAD] * 5)[: ids.shape[1]] for each in expected]


def test_greedy_takes_the_most_likely_token_and_pads_after_the_end() -> None:
    toy = Toy(3, rows=6)
    ids = greedy(toy.step, 6, settings(max_length=9), CPU)
    ends = set()
    for row in range(6):
        expected = [START]
        while len(expected) < 9 and expected[-1] != EOS:
            expected.append(int(toy.tables[row, expected[-1]].argmax()))
        ends.add(len(expected))
        assert ids[row].tolist() == (expected + [PAD] * 9)[: ids.shape[1]]
    assert len(ends) > 1 and ids.shape[1] == max(ends)


def test_greedy_stops_when_all_rows_have_ended_and_does_not_force_an_end() -> None:
    toy = Toy(0, rows=2)
    toy.tables[:, :, EOS] = 20.0
    assert greedy(toy.step, 2, settings(max_length=9), CPU).tolist() == [[START, EOS]] * 2
    assert toy.calls == 1
    toy.tables[:, :, EOS] = -20.0
    ids = greedy(toy.step, 2, settings(max_length=4), CPU)
    assert ids.shape == (2, 4) and EOS not in ids


def test_a_beam_forces_the_end_at_the_last_position() -> None:
    toy = Toy(0, rows=2, beams=3)
    toy.tables[:, :, EOS] = -20.0
    ids, scores = beam(toy.step, toy.reorder, 2, settings(num_beams=3), CPU)
    assert ids[:, -1].tolist() == [EOS, EOS] and ids.shape == (2, 5)
    for row in range(2):  # the forced end costs nothing, and the length counts the start but not the end
        assert float(scores[row]) == pytest.approx(toy.log_prob(row, ids[row].tolist()[:-1]) / 4, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_no_ngram_is_repeated(seed, size) -> None:
    length = 7 if size > 1 else 4  # four words are there to be used once
    plain, blocked = Toy(seed, rows=4, size=7, scale=3), Toy(seed, rows=4, size=7, scale=3)
    for toy in (plain, blocked):
        toy.tables[:, :, EOS] = -9.0
    free = greedy(plain.step, 4, settings(max_length=length), CPU).tolist()
    ids = greedy(blocked.step, 4, settings(max_length=length, no_repeat_ngram=size), CPU).tolist()
    assert not any(repeats([t for t in row if t not in (PAD, EOS)], size) for row in ids)
    for a, b in zip(free, ids, strict=True):
        if not repeats(a, size):
            assert a == b  # blocking changes nothing where nothing repeats
    wide = Toy(seed, rows=4, size=7, beams=4, scale=3)
    found, _ = beam(wide.step, wide.reorder, 4, settings(max_length=length, num_beams=4, no_repeat_ngram=size), CPU)
    assert not any(repeats([t for t in row if t not in (PAD, EOS)], size) for row in found.tolist())


def test_blocking_does_not_renormalise() -> None:
    """The score of a blocked search is made of the unblocked log-probabilities."""
    toy = Toy(1, rows=1, beams=4, scale=3)
    ids, scores = beam(toy.step, toy.reorder, 1, settings(num_beams=4, no_repeat_ngram=1, max_length=6), CPU)
    row = ids[0].tolist()
    body = row[: row.index(EOS)]
    ended_early = len(body) < 5
    total = toy.log_prob(0, row[: len(body) + 1] if ended_early else body)
    assert float(scores[0]) == pytest.approx(total / len(body), abs=1e-5)


def test_early_stopping_takes_the_first_full_set_of_hypotheses() -> None:
    """After two steps two cheap hypotheses have ended; a better, longer one is still open."""
    probabilities = {START: {EOS: 0.4, 3: 0.6}, 3: {EOS: 0.3, 4: 0.7}, 4: {EOS: 1.0}}
    found = {}
    for early in (True, False):
        toy = Toy(0, rows=1, beams=2)
        toy.tables.fill_(-40.0)
        for last, following in probabilities.items():
            for token, probability in following.items():
                toy.tables[0, last, token] = math.log(probability)
        ids, scores = beam(toy.step, toy.reorder, 1, settings(num_beams=2, max_length=8, early_stopping=early), CPU)
        found[early] = (ids[0].tolist(), float(scores[0]), toy.calls)
    assert found[True][0] == [START, 3, EOS] and found[True][1] == pytest.approx(math.log(0.6 * 0.3) / 2, abs=1e-5)
    assert found[False][0] == [START, 3, 4, EOS] and found[False][1] == pytest.approx(math.log(0.6 * 0.7) / 3, abs=1e-5)
    assert found[True][2] == 2 < found[False][2]


def test_rows_do_not_influence_each_other() -> None:
    together = Toy(7, rows=4, beams=3, size=8)
    ids, scores = beam(together.step, together.reorder, 4, settings(num_beams=3, max_length=9), CPU)
    for row in range(4):
        alone = Toy(7, rows=4, beams=3, size=8)
        alone.tables = alone.tables[row : row + 1]
        alone.history = alone.history[:3]
        one, score = beam(alone.step, alone.reorder, 1, settings(num_beams=3, max_length=9), CPU)
        assert ids[row].tolist() == (one[0].tolist() + [PAD] * 9)[: ids.shape[1]]
        assert float(scores[row]) == pytest.approx(float(score[0]), abs=1e-6)


def test_the_cache_follows_the_beams() -> None:
    """After every step the history that the model holds is that of the sequence it continues."""
    toy = Toy(11, rows=2, beams=4, size=8)
    seen = []

    def step(last):
        logits = toy.step(last)
        seen.append(toy.history.clone())
        return logits

    ids, _ = beam(step, toy.reorder, 2, settings(num_beams=4, max_length=7), CPU)
    final = {tuple(h) for h in seen[-1].tolist()}
    row = ids[0].tolist()
    prefixes = {tuple(h[:n]) for history in seen for h in history.tolist() for n in range(1, len(h) + 1)}
    assert tuple(row[: row.index(EOS)]) in prefixes and len(final) > 1
