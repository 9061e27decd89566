"""Relations in full: every word of them is true, complete and free of held-out compositions."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mtvl.data.miniworld.grammar import DIRECTIONS, Kind, only, stands
from mtvl.data.miniworld.language import cloze
from mtvl.data.miniworld.relations import both, seen_from, shared_attributes, tally
from mtvl.data.miniworld.scene import HELD_OUT, Scene, Thing, scene_at

SCENES = [scene_at(11, "pretrain", i) for i in range(150)]
WORDS = {"color": "colour", "shape": "shape", "size": "size", "surface": "texture"}


def one_of(scene: Scene, source: str) -> Thing:
    """The object that a question names."""
    words = source.partition("the ")[2].split()
    for thing in scene.objects:
        values = {"size": thing.size, "texture": thing.texture, "colour": thing.colour, "shape": thing.shape}
        said = {name: value for name, value in values.items() if value in words}
        if len(said) == len([w for w in words if w != "object"]) and only(scene, Kind(**said)) is thing:
            return thing
    raise AssertionError(source)


@pytest.mark.parametrize("scene", SCENES[:60], ids=range(60))
def test_directions_are_all_that_hold(scene: Scene) -> None:
    asked = seen_from(scene, random.Random(1))
    if asked is None:
        return
    one = one_of(scene, asked[0])
    others = [thing for thing in scene.objects if thing is not one]
    parts = asked[1].split(" , ")
    assert len(parts) == len(others)
    for part, other in zip(parts, others, strict=True):
        said = {d for d in DIRECTIONS if d.removesuffix(" of") in part.split()}
        assert said == {d for d in DIRECTIONS if stands(other, d, one)}
        assert other.colour in part.split() and other.shape in part.split()


@pytest.mark.parametrize("scene", SCENES[:60], ids=range(60))
def test_shared_attributes_are_all_and_only_those(scene: Scene) -> None:
    asked = shared_attributes(scene, random.Random(2))
    if asked is None:
        return
    one = one_of(scene, asked[0])
    others = [thing for thing in scene.objects if thing is not one]
    for part, other in zip(asked[1].split(" , "), others, strict=True):
        said = {WORDS[w] for w in part.partition("same ")[2].split()}
        assert said == {name for name in WORDS.values() if getattr(one, name) == getattr(other, name)}
        assert ("differs" in part) == (not said)


def test_numbers_are_those_of_the_scene_and_fall() -> None:
    rng = random.Random(3)
    for left, right in zip(SCENES[::2], SCENES[1::2], strict=True):
        source, target = tally((left, right), rng)
        name = WORDS[source.split()[-1]]
        for side, scene in zip(target.split(" ; "), (left, right), strict=True):
            pairs = [p.split() for p in side.partition(" : ")[2].split(" , ")]
            assert {value: int(n) for n, value in pairs} == Counter(getattr(t, name) for t in scene.objects)
            assert [int(n) for n, _ in pairs] == sorted((int(n) for n, _ in pairs), reverse=True)


def test_nothing_held_out_is_said() -> None:
    rng = random.Random(4)
    for left, right in zip(SCENES[::2], SCENES[1::2], strict=True):
        texts = [both(left, right, rng), seen_from(left, rng), shared_attributes(right, rng)]
        for words in (" ".join(t).replace(",", " ").split() for t in texts if t):
            assert not set(zip(words, words[1:], strict=False)) & set(HELD_OUT)


def test_easy_statements_can_be_left_out() -> None:
    def share(easy: float) -> float:
        rng = random.Random(5)
        found = [answer for scene in SCENES for _, answer in cloze(scene, rng, easy=easy)]
        return len(found) / len(SCENES)

    assert share(0.0) < share(0.25) < share(1.0)
    assert cloze(SCENES[0], random.Random(6)) == cloze(SCENES[0], random.Random(6), easy=1.0)
