"""Byte-pair encoding learned in the same way every time: equal counts are told apart by the pieces themselves.

The trainer of `tokenizers` walks hash tables in an order that differs from process to process, so pieces of equal counts get
other ids in every run, and a backbone on top of them could not be made again.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping

Pair = tuple[str, str]


class Merges:
    """Words as pieces, and how often each pair of neighbours occurs."""

    def __init__(self, words: Mapping[str, int], suffix: str) -> None:
        self.words = [[*word[:-1], word[-1] + suffix] for word in sorted(words)]
        self.counts = [words[word] for word in sorted(words)]
        self.pairs: Counter[Pair] = Counter()
        self.places: dict[Pair, set[int]] = defaultdict(set)
        for number, pieces in enumerate(self.words):
            self._count(number, pieces, 1)
        self.heap = [(-count, pair) for pair, count in self.pairs.items()]
        heapq.heapify(self.heap)

    @property
    def symbols(self) -> set[str]:
        """All pieces that words consist of now."""
        return {piece for pieces in self.words for piece in pieces}

    def _count(self, number: int, pieces: list[str], sign: int) -> set[Pair]:
        found = set()
        for pair in zip(pieces, pieces[1:], strict=False):
            self.pairs[pair] += sign * self.counts[number]
            found.add(pair)
            if sign > 0:
                self.places[pair].add(number)
        return found

    def best(self) -> Pair | None:
        """The most frequent pair, the first in the alphabet among equals; None when every word is one piece."""
        while self.heap:
            count, pair = heapq.heappop(self.heap)
            if self.pairs[pair] == -count > 0:  # else its count has changed, and a newer entry says how
                return pair
        return None

    def merge(self, pair: Pair) -> None:
        """Make one piece of `pair` in all words."""
        changed: set[Pair] = set()
        for number in self.places.pop(pair):
            pieces = self.words[number]
            changed |= self._count(number, pieces, -1)
            self.words[number] = joined(pieces, pair)
            changed |= self._count(number, self.words[number], 1)
        for other in changed:
            if self.pairs[other] > 0:
                heapq.heappush(self.heap, (-self.pairs[other], other))
            else:
                del self.pairs[other]


def joined(pieces: list[str], pair: Pair) -> list[str]:
    """`pieces` with each occurrence of `pair` as one, from the left."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def learn(words: Mapping[str, int], size: int, *, first: list[str], suffix: str) -> tuple[dict[str, int], list[Pair]]:
    """Vocabulary of at most `size` pieces and the merges behind it, from words and how often they occur.

    `first` are the pieces that come first, in their order; then all characters of the words, then merges by count.
    """
    state = Merges(words, suffix)
    vocabulary = list(dict.fromkeys([*first, *sorted(state.symbols)]))
    known, merges = set(vocabulary), []
    while len(vocabulary) < size and (pair := state.best()) is not None:
        merges.append(pair)
        state.merge(pair)
        if (piece := "".join(pair)) not in known:  # two pairs may make the same piece
            known.add(piece)
            vocabulary.append(piece)
    return {piece: number for number, piece in enumerate(vocabulary)}, merges
