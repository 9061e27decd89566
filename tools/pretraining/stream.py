"""Endless batches for pretraining the tiny language model, one kind of sample a batch."""

from __future__ import annotations

import random
import re

import numpy as np
import torch

from mtvl.backbones.tokenizers import BartText
from mtvl.data.miniworld.episode import Episode, episode_at
from mtvl.data.miniworld.judgements import glance, judge, judge_pair
from mtvl.data.miniworld.language import cloze, cloze_pair, describe
from mtvl.data.miniworld.prose import infill, sentences
from mtvl.data.miniworld.relations import both, seen_from, shared_attributes, tally
from mtvl.data.miniworld.scene import LATTICE, Scene, grid_labels, scene_at
from mtvl.data.miniworld.video_language import cloze_episode, pick_episode, pick_scene, video_sentences
from mtvl.data.miniworld.video_story import story
from mtvl.types import Batch
from pretraining.towers import SPLIT_SEED, quarter_labels

# Kinds of batches and their shares: in the first fifth of a run, later, and in a first and a second run that goes on from
# finished weights. Whole descriptions come first, since every word of them is about what is seen; they are long and slow.
MIX = {
    "one": (0.30, 0.30, 0.16, 0.06),  # masked statements about a picture
    "two": (0.08, 0.15, 0.16, 0.08),  # about two pictures
    "all": (0.22, 0.05, 0.02, 0.03),  # every object of a picture
    "relate": (0.0, 0.0, 0.16, 0.08),  # relations between all objects of a picture
    "relate two": (0.0, 0.0, 0.12, 0.06),  # the objects of two pictures, and how many
    "judge": (0.0, 0.0, 0.0, 0.22),  # many statements about a picture: true or not
    "judge two": (0.0, 0.0, 0.0, 0.18),
    "glance": (0.0, 0.0, 0.0, 0.06),  # the objects as they catch the eye
    "video": (0.14, 0.22, 0.18, 0.10),  # masked statements about a video
    "story video": (0.16, 0.06, 0.07, 0.04),  # all that happens in a video
    "pick video": (0.02, 0.09, 0.06, 0.04),  # a masked statement with options to choose from
    "pick one": (0.01, 0.04, 0.02, 0.01),
    "text": (0.07, 0.09, 0.05, 0.04),  # damaged sentences, no picture
}
CACHED = 300_000  # texts whose ids are kept; twelve thousand steps would fill gigabytes
LAST_ROUND = 2
EASY = 0.25  # share of the statements about one object alone that a further run reads
MOST_STATEMENTS = 4  # about the same picture in one sample: one reading of a picture answers all of them
Sample = tuple[tuple[int, ...], str, str]  # pictures or one video, source, target


def scenes_of(seed: int, count: int) -> list[Scene]:
    """The pictures of pretraining."""
    return [scene_at(SPLIT_SEED + seed, "pretrain", i) for i in range(count)]


def episodes_of(seed: int, count: int) -> list[Episode]:
    """The videos of pretraining: three of four long, one short."""
    return [episode_at(SPLIT_SEED + seed, "pretrain", i, *((4, 1) if i % 4 == 3 else (8, 3))) for i in range(count)]


class Stream:
    """Batches from `scenes` with features (n, P, F) and `episodes` with the features of all their ticks in a row."""

    def __init__(
        self, tokenizer: BartText, scenes: list[Scene], grids: torch.Tensor, episodes: list[Episode], frames: torch.Tensor,
        seed: int, rows: int, *, round_: int = 0,
    ) -> None:  # fmt: skip
        self.round = round_
        self.tokenizer, self.rows = tokenizer, rows
        self.scenes, self.grids, self.episodes, self.frames = scenes, grids, episodes, frames
        self.starts = np.cumsum([0, *(e.ticks for e in episodes)])
        self.cache: dict[str, list[int]] = {}
        self.pool: dict[str, list[Sample]] = {k: [] for k in MIX}
        self.rng = random.Random(seed + 17)
        side = (torch.arange(6) + 0.5) / 6 * LATTICE  # the lattice cell under the middle of each pooled visual token
        cells = (side.long()[:, None] * LATTICE + side.long()[None, :]).flatten()
        self.cell_labels = torch.from_numpy(np.stack([grid_labels(s) for s in scenes]))[:, cells]
        ticks = [e.scene(t) for e in episodes for t in range(e.ticks)]
        self.quarter_labels = torch.from_numpy(np.stack([quarter_labels(s) for s in ticks]))

    def state(self) -> dict[str, object]:
        """Where the stream stands."""
        return {"random": self.rng.getstate(), "pool": self.pool}

    def load(self, state: dict) -> None:
        """Go on from there."""
        self.rng.setstate(state["random"])
        self.pool = state["pool"]

    def _ids(self, text: str) -> list[int]:
        if text not in self.cache:
            if len(self.cache) >= CACHED:
                self.cache.clear()
            self.cache[text] = masked_ids(self.tokenizer, text)
        return self.cache[text]

    def word(self, text: str) -> int:
        """The id of a word that must be one token."""
        ids = self.tokenizer.encode(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens; raise VOCABULARY")
        return ids[0]

    def _some(self, samples: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
        return self.rng.sample(samples, min(most, len(samples)))

    def _packed(self, prompt: str, statements: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
        """At most `most` sources and targets of one to MOST_STATEMENTS statements each, none used twice."""
        found, rest = [], list(statements)
        while rest and len(found) < most:
            taken = [rest.pop() for _ in range(min(self.rng.randint(1, MOST_STATEMENTS), len(rest)))]
            texts, answers = zip(*taken, strict=True)
            found.append((f"{prompt} {' ; '.join(texts)}", " ; ".join(answers)))
        return found

    def _refill(self) -> None:
        rng, pool = self.rng, self.pool
        for index in rng.sample(range(len(self.scenes)), min(512, len(self.scenes))):
            scene, other = self.scenes[index], rng.randrange(len(self.scenes))
            statements = cloze(scene, rng, easy=EASY if self.round else 1.0)
            pool["one"] += [((index,), *item) for item in self._packed("fill:", statements, 4)]
            pool["all"].append(((index,), "describe:", describe(scene, rng)))
            pairs = cloze_pair(scene, self.scenes[other], rng)
            pool["two"] += [((index, other), *item) for item in self._packed("pair:", pairs, 2)]
            if self.round:
                asked = [
                    seen_from(scene, rng),
                    seen_from(scene, rng),
                    shared_attributes(scene, rng),
                    tally((scene,), rng),
                ]
                pool["relate"] += [((index,), *item) for item in asked if item]
                two = (scene, self.scenes[other])
                pool["relate two"] += [((index, other), *item) for item in (tally(two, rng), both(*two, rng))]
            if self.round == LAST_ROUND:
                pool["judge"] += [((index,), *judge(scene, rng)) for _ in range(2)]
                pool["judge two"] += [((index, other), *judge_pair(scene, self.scenes[other], rng)) for _ in range(2)]
                pool["glance"].append(((index,), *glance(scene, rng)))
            pool["pick one"] += [((index,), *option(*item)) for item in self._some(pick_scene(scene, rng), 2)]
            texts = [infill(t, rng) for t in rng.sample(sentences(scene, rng), 2)]
            pool["text"] += [((), "text: " + damaged, whole) for damaged, whole in texts]
        for index in rng.sample(range(len(self.episodes)), min(512, len(self.episodes))):
            episode = self.episodes[index]
            pool["video"] += [((index,), *item) for item in self._packed("watch:", cloze_episode(episode, rng), 4)]
            pool["story video"].append(((index,), "tell:", story(episode, rng)))
            pool["pick video"] += [((index,), *option(*item)) for item in self._some(pick_episode(episode, rng), 3)]
            said = video_sentences(episode, rng)
            texts = [infill(t, rng) for t in rng.sample(said, min(2, len(said)))]
            pool["text"] += [((), "text: " + damaged, whole) for damaged, whole in texts]
        for samples in pool.values():
            rng.shuffle(samples)

    def batch(self, share: float) -> tuple[Batch, torch.Tensor]:
        """One batch of one kind (mixed, all rows would be as long as a description), and the attributes under it.

        These are (B, V, 4), one row a visual token, zeros where there is no object.
        """
        phase = self.round + 1 if self.round else int(share >= 0.2)
        name = self.rng.choices(list(MIX), [shares[phase] for shares in MIX.values()])[0]
        while len(self.pool[name]) < self.rows:
            self._refill()
        rows = [self.pool[name].pop() for _ in range(self.rows)]
        sources = [self.tokenizer.wrap(self._ids(t)) for _, t, _ in rows]
        targets = [self.tokenizer.wrap(self._ids(a)) for _, _, a in rows]
        source = pad(sources, self.tokenizer.pad_id)
        is_video = "video" in name
        features, mask, labels = self._videos(rows) if is_video else self._pictures(rows)
        batch = Batch(
            name, (), source, source != self.tokenizer.pad_id, features, pad(targets, -100), torch.ones(len(rows)),
            feature_kind="frame" if is_video else "grid", feature_mask=mask,
        )  # fmt: skip
        return batch, labels

    def _pictures(self, rows: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        indices = torch.tensor([r[0] for r in rows], dtype=torch.long)
        features = self.grids[indices].float()
        return features, torch.ones(features.shape[:3], dtype=torch.bool), self.cell_labels[indices].flatten(1, 2)

    def _videos(self, rows: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        _, tokens, width = self.frames.shape
        longest = max(self.episodes[r[0][0]].ticks for r in rows)
        features = torch.zeros(len(rows), 1, longest * tokens, width)
        mask = torch.zeros(features.shape[:3], dtype=torch.bool)
        labels = torch.zeros(len(rows), longest * tokens, 4, dtype=torch.long)
        for i, ((index,), _, _) in enumerate(rows):
            first, last = self.starts[index], self.starts[index + 1]
            count = (last - first) * tokens
            features[i, 0, :count] = self.frames[first:last].float().flatten(0, 1)
            mask[i, 0, :count] = True
            labels[i, :count] = self.quarter_labels[first:last].flatten(0, 1)
        return features, mask, labels


def option(text: str, answer: str) -> tuple[str, str]:
    """Source and target of a statement with options "a0: x. a1: y.": the words of the right option, not its name.

    With "a0" .. "a4" as targets this small model stayed at chance for 3,400 steps of 64.
    """
    options = dict(re.findall(r"(a\d): ([^.]*)\.", text))
    return "pick: " + text, options[answer]


def masked_ids(tokenizer: BartText, text: str) -> list[int]:
    """Ids of `text` without end tokens; each "<mask>" is the tokenizer's mask token."""
    first, *rest = [tokenizer.encode(piece) for piece in text.split("<mask>")]
    return first + [i for piece in rest for i in (tokenizer.raw.mask_token_id, *piece)]


def pad(lists: list[list[int]], value: int) -> torch.Tensor:
    """(len(lists), length of the longest), filled up with `value`."""
    width = max(map(len, lists))
    return torch.tensor([ids + [value] * (width - len(ids)) for ids in lists])
