"""Training texts of real sets, and what is damaged in them for a language model to restore."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mtvl.backbones.tokenizers import ALPHABET
from mtvl.data.collate import Collator
from mtvl.data.miniworld.language import MASK
from mtvl.data.miniworld.prose import infill
from mtvl.errors import DataError
from mtvl.types import Example, Limits, Segment, Target, Visual

TEXT, SEEN = "text: ", "describe: "  # the prompts of both kinds of samples
WHOLE = 0.4  # share of captions of which nothing is left but the picture
LIMITS = Limits(source_tokens=64, target_tokens=40)
MOST_VALIDATION = 256  # captions of each task


@dataclass
class Reader:
    """`seen` are captions with what they are about, one example a caption; `texts` is every text that may be read alone."""

    seen: list[Example] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    seed: int = 0

    @classmethod
    def of(cls, examples: Mapping[str, Sequence[Example]], seed: int) -> Reader:
        """From the training examples of tasks; DataError when they hold no text.

        An example that asks nothing is a caption: its targets say what is seen. Otherwise targets are answers, which are
        kept apart from what was asked.
        """
        reader, texts, answers = cls(seed=seed), {}, {}
        for rows in examples.values():
            for example in rows:
                own = asked(example)
                for target in example.targets:
                    (answers if own else texts)[target.text.strip()] = None
                if own:
                    texts[own] = None
                else:
                    reader.seen += [replace(example, targets=(t,)) for t in example.targets]
        reader.texts, reader.answers = [t for t in texts if t], [a for a in answers if a]
        if not reader.texts:
            raise DataError(f"expected texts in the training split of {', '.join(examples)}, found none")
        return reader

    def corpus(self, prompts: Sequence[str]) -> list[str]:
        """What the tokenizer is trained on: every text and answer, and each prompt and character often enough to count."""
        return self.texts + self.answers * 2 + [*ALPHABET, *prompts, TEXT, SEEN] * 50

    def batch(self, step: int, rows: int, *, is_seen: bool) -> list[Example]:
        """The damaged samples of a step: a pure function of (seed, step)."""
        rng = random.Random(f"{self.seed} {step}")
        if is_seen:
            # One kind of visual input a batch, each as often: the captions of videos outnumber those of pictures.
            pool = self._alike[rng.randrange(len(self._alike))]
            return [damaged(e, rng) for e in rng.choices(pool, k=rows)]
        pool_size, picked = len(self.texts) + len(self.answers), []
        for number in range(rows):
            index = rng.randrange(pool_size)
            text = self.texts[index] if index < len(self.texts) else self.answers[index - len(self.texts)]
            source = masked(text, rng)
            picked.append(
                Example(f"{step}-{number}", TEXT, (Segment("text", TEXT + source),), Visual(), (Target(text),))
            )
        return picked

    @cached_property
    def _alike(self) -> list[list[Example]]:
        pools: dict[tuple[int, bool], list[Example]] = defaultdict(list)
        for example in self.seen:
            pools[_shape(example)].append(example)
        return list(pools.values())

    def validation(self, examples: Mapping[str, Sequence[Example]]) -> list[Example]:
        """Captions of a held-back split with everything masked but the prompt, one a picture or video."""
        found = []
        for rows in examples.values():
            captions = [e for e in rows if not asked(e) and e.targets]
            found += [whole(replace(e, targets=e.targets[:1])) for e in captions[:MOST_VALIDATION]]
        return found

    def collator(self, model: Any, features: Any, frames: Any) -> Collator:
        """Makes batches of both kinds of samples."""
        return Collator(
            model.tokenizer(), features, {TEXT: LIMITS, SEEN: LIMITS}, frames=frames, max_frames=model.max_frames,
            max_tokens=model.max_tokens,
        )  # fmt: skip


def asked(example: Example) -> str:
    """The question or statement of an example; "" for a caption."""
    return " ".join("".join(s.text for s in example.segments if s.name == "question").split())


def masked(text: str, rng: random.Random, share: float = 0.35) -> str:
    """`text` with something masked in it; a single word may stay, since nothing would be left to restore it from."""
    source = infill(text, rng, share)[0]
    while MASK not in source and len(text.split()) > 1:
        source = infill(text, rng, share)[0]
    return source


def whole(example: Example) -> Example:
    """`example` to be restored from its picture or video alone."""
    return replace(example, task=SEEN, segments=(Segment("text", SEEN + MASK),))


def damaged(example: Example, rng: random.Random) -> Example:
    """A caption to be restored with its picture or video."""
    if rng.random() < WHOLE:
        return whole(example)
    source = masked(example.targets[0].text, rng, share=rng.uniform(0.3, 0.8))
    return replace(example, task=SEEN, segments=(Segment("text", SEEN + source),))


def _shape(example: Example) -> tuple[int, bool]:
    return len(example.visual.images), bool(example.visual.video)
