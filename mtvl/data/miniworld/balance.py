"""Choosing questions so that the text of a question says nothing about its answer."""

from __future__ import annotations

import functools
import random
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mtvl.data.miniworld.grammar import DIRECTIONS, VALUES, Kind
from mtvl.data.miniworld.scene import Scene, Thing


@dataclass(frozen=True)
class Asked:
    """A question about one scene.

    `options` are the answers that its text leaves open, `kinds` the descriptions in the text, `focus` the objects that
    matter. A question that offers two answers is balanced by the place of the right one, not by its name.
    """

    form: str
    text: str
    answer: str
    options: tuple[str, ...]
    kinds: tuple[Kind, ...] = ()
    focus: tuple[Thing, ...] = ()
    offers: bool = False

    @property
    def is_held_out(self) -> bool:
        """True when a held-out composition is named in the text or is looked at."""
        return any(k.is_held_out for k in self.kinds) or any(t.is_held_out for t in self.focus)

    @property
    def outcome(self) -> str:
        """What has to be balanced: the answer, or its place among the offered ones."""
        return str(self.options.index(self.answer)) if self.offers else self.answer


Maker = Callable[[Scene, random.Random, bool], Sequence[Asked]]

_CONTENT = {value for values in VALUES.values() for value in values}
_CONTENT |= {Kind(shape=shape).plural for shape in VALUES["shape"]} | {d.split()[0] for d in DIRECTIONS}
_TEXT_WEIGHT, _WORD_WEIGHT, _FORM_WEIGHT = 1.0, 0.5, 0.5


class Balancer:
    """Counts outcomes per form, per text and per content word, and prefers the question that evens them out."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, ...]] = Counter()

    def choose(self, rng: random.Random, candidates: Sequence[Asked]) -> Asked | None:
        """The best candidate, already counted.

        Questions with two outcomes take the rarer outcome of their form, or None when no candidate has it: their
        forms stay balanced to one question.
        """
        fitting = [asked for asked in candidates if len(asked.options) != 2 or self._is_due(asked)]
        if not fitting:
            return None
        best = min(fitting, key=lambda asked: (round(self._excess(asked), 6), rng.random()))
        for key, _ in _keys(best):
            self._seen[key] += 1
            self._seen[(*key, best.outcome)] += 1
        return best

    def _is_due(self, asked: Asked) -> bool:
        key = ("form", asked.form)
        return 2 * self._seen[(*key, asked.outcome)] <= self._seen[key]

    def _excess(self, asked: Asked) -> float:
        outcome, options, seen, total = asked.outcome, len(asked.options), self._seen, 0.0
        for key, weight in _keys(asked):
            total += weight * (seen[(*key, outcome)] - seen[key] / options)
        return total


def _keys(asked: Asked) -> list[tuple[tuple[str, ...], float]]:
    keys = [(("form", asked.form), _FORM_WEIGHT), (("text", asked.form, asked.text), _TEXT_WEIGHT)]
    return keys + [(("word", asked.form, word), _WORD_WEIGHT) for word in _content_words(asked.text)]


@functools.lru_cache(maxsize=1 << 15)
def _content_words(text: str) -> tuple[str, ...]:
    return tuple(sorted({word for word in re.findall(r"[a-z]+", text) if word in _CONTENT}))


_LOOK_AHEAD = 16  # forms that are tried for one picture
_MAX_ROUNDS = 12


def ask_all(
    scenes: Sequence[Scene],
    number: int,
    makers: Mapping[str, tuple[Maker, float]],
    rng: random.Random,
    with_held_out: bool,
) -> list[tuple[int, Asked]]:
    """`number` questions on `scenes` as (index of the scene, question), in order of scenes, no text twice on a scene.

    `makers` maps a form to its maker and its share; shares are met exactly. Scenes are visited in turn, each round one
    question a scene.
    """
    pending = deque(_quotas(number, {form: share for form, (_, share) in makers.items()}, rng))
    balancer = Balancer()
    found: list[tuple[int, Asked]] = []
    used: set[tuple[int, str]] = set()
    for _ in range(_MAX_ROUNDS):
        for index in range(len(scenes)):
            if not pending:
                return sorted(found, key=lambda item: item[0])
            for _ in range(min(_LOOK_AHEAD, len(pending))):
                candidates = makers[pending[0]][0](scenes[index], rng, with_held_out)
                fresh = [asked for asked in candidates if (index, asked.text) not in used]
                asked = balancer.choose(rng, fresh)
                if asked is not None:
                    pending.popleft()
                    used.add((index, asked.text))
                    found.append((index, asked))
                    break
                pending.rotate(-1)
    if pending:
        raise RuntimeError(f"{len(scenes)} scenes do not carry {number} balanced questions; left: {Counter(pending)}")
    return sorted(found, key=lambda item: item[0])


def _quotas(number: int, shares: Mapping[str, float], rng: random.Random) -> list[str]:
    """`number` names in random order, each as often as its share says (largest remainders)."""
    total = sum(shares.values())
    exact = {name: number * share / total for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda n: counts[n] - exact[n])[: number - sum(counts.values())]:
        counts[name] += 1
    names = [name for name, times in counts.items() for _ in range(times)]
    rng.shuffle(names)
    return names
