"""Judgements: each is read again from its words and held against the pictures, by other code than that which wrote it."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from mtvl.data.miniworld.grammar import NUMBER_WORDS
from mtvl.data.miniworld.judgements import glance, judge, judge_pair
from mtvl.data.miniworld.scene import COLOURS, HELD_OUT, LATTICE, SHAPES, SIZES, TEXTURES, Scene, Thing, scene_at

SCENES = [scene_at(12, "pretrain", i) for i in range(400)]
NAMES = {"color": "colour", "shape": "shape", "size": "size", "surface": "texture"}
DIRECTION = r"(to the left of|to the right of|above|below)"


def meant(phrase: str, scene: Scene) -> list[Thing]:
    """The objects of `scene` that fit a noun phrase."""
    words = {re.sub("(?<=ss)es$|(?<!s)s$", "", w) for w in phrase.split()} - {"a", "an", "the", "object"}
    assert words <= {*COLOURS, *SHAPES, *SIZES, *TEXTURES}, phrase
    return [t for t in scene.objects if words <= {t.colour, t.shape, t.size, t.texture}]


def beside(a: Thing, direction: str, b: Thing) -> bool:
    """Whether `a` stands so to `b`."""
    return {
        "to the left of": a.col < b.col, "to the right of": a.col > b.col, "above": a.row < b.row, "below": a.row > b.row,
    }[direction]  # fmt: skip


def said_to_be(word: str, a: int, b: int) -> bool:
    """Whether `word` is right about the numbers `a` and `b`."""
    return {"more": a > b, "fewer": a < b, "as many": a == b}[word]


def numbered(text: str, scenes: tuple[Scene, ...]) -> bool:
    """Truth of "exactly two stars" and the like."""
    found = re.fullmatch(rf"(exactly|not less than|up to|) ?({'|'.join(NUMBER_WORDS)}) (.*)", text)
    assert found, text
    number, said = sum(len(meant(found[3], s)) for s in scenes), NUMBER_WORDS.index(found[2])
    return {"not less than": number >= said, "up to": number <= said}.get(found[1], number == said)


def holds_in_one(text: str, scene: Scene) -> bool:
    """Truth of a statement about one picture."""
    if m := re.fullmatch(rf"(a .*|an .*|the .*) (?:lies|stays) {DIRECTION} (.*)", text):
        if text.startswith("the "):
            (a,), (b,) = meant(m[1], scene), meant(m[3], scene)
            return beside(a, m[2], b)
        return any(beside(a, m[2], b) for a in meant(m[1], scene) for b in meant(m[3], scene))
    if m := re.fullmatch(r"(the .*) keeps to the (\w+)", text) or re.fullmatch(
        r"(?P<s>left|right|top|bottom) : (the .*)", text
    ):
        phrase, side = (m[2], m[1]) if "s" in m.groupdict() else (m[1], m[2])
        (a,) = meant(phrase, scene)
        half = LATTICE // 2
        return {"left": a.col < half, "right": a.col >= half, "top": a.row < half, "bottom": a.row >= half}[side]
    if m := re.fullmatch(r"(the .*) agrees with (the .*) in (\w+)", text) or re.fullmatch(
        r"(.*) and (the .*) share one (\w+)", text
    ):
        (a,), (b,) = meant(m[1], scene), meant(m[2], scene)
        return getattr(a, NAMES[m[3]]) == getattr(b, NAMES[m[3]])
    if m := re.fullmatch(r"(the .*) : (\w+) (\w+)", text):
        (a,) = meant(m[1], scene)
        return getattr(a, NAMES[m[2]]) == m[3]
    if m := re.fullmatch(r"(more|fewer|as many) (.*) (?:than|as) (.*)", text):
        return said_to_be(m[1], len(meant(m[2], scene)), len(meant(m[3], scene)))
    if m := re.fullmatch(r"(.*) as well as (.*)", text):
        return bool(meant(m[1], scene)) and bool(meant(m[2], scene))
    if m := re.fullmatch(r"(.*) , else (.*)", text):
        return bool(meant(m[1], scene)) or bool(meant(m[2], scene))
    if m := re.fullmatch(r"(.*) occurs", text):
        return bool(meant(m[1], scene))
    return numbered(text, (scene,))


def holds_in_two(text: str, left: Scene, right: Scene) -> bool:
    """Truth of a statement about two pictures."""
    if m := re.fullmatch(r"(left|right) picture , (.*)", text):
        return holds_in_one(m[2], left if m[1] == "left" else right)
    if m := re.fullmatch(r"some picture , (.*)", text):
        return holds_in_one(m[1], left) or holds_in_one(m[1], right)
    if m := re.fullmatch(r"(both|neither|only one|some) pictures? shows? (.*)", text):
        number = bool(meant(m[2], left)) + bool(meant(m[2], right))
        return number in {"both": (2,), "neither": (0,), "only one": (1,), "some": (1, 2)}[m[1]]
    if m := re.fullmatch(r"left against right , (more|fewer|as many) (.*)", text):
        return said_to_be(m[1], len(meant(m[2], left)), len(meant(m[2], right)))
    return numbered(text.removeprefix("taken together "), (left, right))


@pytest.mark.parametrize("pair", [False, True])
def test_every_judgement_is_right_and_truth_is_balanced(pair: bool) -> None:
    rng, truths = random.Random(3), Counter()
    for left, right in zip(SCENES[::2], SCENES[1::2], strict=True):
        source, target = judge_pair(left, right, rng) if pair else judge(left, rng)
        texts, words = source.split(": ", 1)[1].split(" ; "), target.split()
        assert len(texts) == len(words) <= 8
        for text, word in zip(texts, words, strict=True):
            assert not any(f"{colour} {shape}" in text for colour, shape in HELD_OUT), text
            truth = holds_in_two(text, left, right) if pair else holds_in_one(text, left)
            assert word == ("yes" if truth else "no"), text
        truths.update(words)
    assert 0.4 < truths["yes"] / truths.total() < 0.6


def test_glance_names_large_objects_first_then_in_reading_order() -> None:
    for scene in SCENES[:100]:
        head, _, names = glance(scene, random.Random(2))[1].partition(" objects : ")
        order = [t for size in ("large", "small") for t in scene.objects if t.size == size]
        assert int(head) == len(order)
        for words, thing in zip(names.split(" , "), order, strict=True):
            assert words.endswith(f"{thing.colour} {thing.shape}")
