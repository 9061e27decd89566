"""Pretraining text: grammatical, true of the picture, balanced, and worded differently from the benchmarks."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import pytest

from mtvl.data.miniworld.balance import ask_all
from mtvl.data.miniworld.captions import captions
from mtvl.data.miniworld.gqa_forms import GQA_FORMS
from mtvl.data.miniworld.grammar import VALUES, Kind, count, kind_of, named_things, only
from mtvl.data.miniworld.language import MASK, cloze, cloze_pair, describe
from mtvl.data.miniworld.questions import VQA_FORMS
from mtvl.data.miniworld.scene import HELD_OUT, SHAPES, Scene, Thing, scene_at

SCENES = [scene_at(11, "pretrain", i) for i in range(300)]
PLURALS = {Kind(shape=s).plural: s for s in SHAPES} | {"objects": ""}
HELD_OUT_WORDS = [f"{colour} {noun}" for colour, shape in HELD_OUT for noun in (shape, Kind(shape=shape).plural)]


def parse(words: str) -> Kind:
    """Read "small red stars" back, without the code that wrote it."""
    *adjectives, noun = words.split()
    parts = {"shape": PLURALS.get(noun, "" if noun == "object" else noun)}
    for word in adjectives:
        parts[next(name for name, values in VALUES.items() if word in values)] = word
    return Kind(**parts)


def statements(seed: int = 0) -> list[tuple[Scene, str, str]]:
    rng = random.Random(seed)
    return [(scene, text, answer) for scene in SCENES for text, answer in cloze(scene, rng)]


def test_nouns_and_articles() -> None:
    assert Kind(size="small", colour="red", shape="cross").plural == "small red crosses"
    assert Kind(shape="").any == "an object"
    assert Kind(texture="plain").any == "a plain object"
    assert Kind(shape="heart").counted(1) == "one heart"
    assert Kind(shape="heart").counted(0) == "no hearts"


def test_references_name_one_object_and_are_not_wordier_than_needed() -> None:
    for scene in SCENES[:60]:
        for thing, kinds in named_things(scene):
            for kind in kinds:
                assert only(scene, kind) == thing
                for name in kind.attributes:
                    shorter = Kind(**{k: v for k, v in kind.attributes.items() if k != name})
                    if shorter.shape or shorter.colour:
                        assert only(scene, shorter) != thing


def test_masked_statements_hold_one_mask_and_cover_the_primitives() -> None:
    found = statements()
    assert all(text.split().count(MASK) == 1 for _, text, _ in found)
    answers = Counter(answer for _, _, answer in found)
    expected = {v for values in VALUES.values() for v in values} | {"yes", "no", "left", "right", "above", "below"}
    expected |= {"top left", "top right", "bottom left", "bottom right", "more", "fewer", "as many"}
    expected |= {"the same", "a different", *"0123456"}
    assert expected == set(answers)
    assert 0.45 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.55
    assert 12 <= len(found) / len(SCENES) <= 30


def test_masked_statements_are_true_by_a_second_reading() -> None:
    checked: Counter[str] = Counter()
    for scene, text, answer in statements():
        if match := re.search(r"(?:there is|it shows|one sees) (an? (?:\w+ )*\w+)(?: \?| :|$)", text):
            kind = parse(match[1].split(" ", 1)[1])
            assert (answer == "yes") == (count(scene, kind) > 0), text
            checked["exists"] += 1
        elif match := re.fullmatch(r"one can count <mask> (.*) here|(\w+|\w+ \w+) : <mask>", text):
            words = next(g for g in match.groups() if g)
            if words.split()[-1] in PLURALS:
                assert count(scene, parse(words)) == int(answer), text
                checked["counts"] += 1
        elif match := re.fullmatch(r"the (.*) has the color <mask>", text):
            thing = only(scene, parse(match[1]))
            assert thing is not None and thing.colour == answer, text
            checked["colour"] += 1
        elif match := re.fullmatch(r"the (.*) lies to the <mask> of the (.*)", text):
            a, b = only(scene, parse(match[1])), only(scene, parse(match[2]))
            assert a is not None and b is not None
            assert (a.col < b.col) if answer == "left" else (a.col > b.col), text
            checked["relation"] += 1
    assert min(checked[name] for name in ("exists", "counts", "colour", "relation")) > 50, checked


def test_pair_statements_are_true_by_a_second_reading() -> None:
    rng = random.Random(1)
    checked: Counter[str] = Counter()
    for left, right in zip(SCENES, SCENES[1:], strict=False):
        for text, answer in cloze_pair(left, right, rng):
            assert text.split().count(MASK) == 1
            if match := re.fullmatch(r"the (left|right) picture has <mask> (.*)", text):
                assert int(answer) == count(left if match[1] == "left" else right, parse(match[2])), text
                checked["counts"] += 1
            elif match := re.search(r"both pictures show an? (.*?)(?: \?| :| , which|$)", text):
                kind = parse(match[1])
                assert (answer in ("yes", "true")) == (count(left, kind) > 0 and count(right, kind) > 0), text
                checked["both"] += 1
    assert min(checked["counts"], checked["both"]) > 50


def test_a_text_alone_does_not_give_the_answer_away() -> None:
    votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for _, text, answer in statements():
        votes[
            re.sub(r"\w+", lambda m: "x" if m[0] in PLURALS or any(m[0] in v for v in VALUES.values()) else m[0], text)
        ][answer] += 1
    best = sum(max(counter.values()) for counter in votes.values())
    assert best / sum(sum(counter.values()) for counter in votes.values()) < 0.5


def test_descriptions_name_every_object_in_reading_order() -> None:
    rng = random.Random(2)
    for scene in SCENES[:60]:
        text = describe(scene, rng)
        places = [text.index(kind_of(thing).words) for thing in scene.objects]
        if len(set(map(kind_of, scene.objects))) == len(scene.objects):
            assert places == sorted(places)


def test_pretraining_text_is_small_and_never_names_held_out_compositions() -> None:
    rng = random.Random(3)
    texts = [f"{text} {answer}" for _, text, answer in statements()]
    texts += [describe(scene, rng) for scene in SCENES]
    texts += [text for a, b in zip(SCENES, SCENES[1:], strict=False) for text, _ in cloze_pair(a, b, rng)]
    for text in texts:
        assert text == text.lower()
        assert not any(f" {words} " in f" {text} " for words in HELD_OUT_WORDS), text
        assert not re.search(r"\ba (?=[aeiou])|\ban (?=[^aeiou])", text), text
    assert len({word for text in texts for word in text.split()}) < 200


def test_pretraining_text_shares_no_sentence_with_the_benchmarks() -> None:
    rng = random.Random(4)
    asked = {a.text.rstrip("?") for forms in (VQA_FORMS, GQA_FORMS) for _, a in ask_all(SCENES, 300, forms, rng, False)}
    said = {text.replace(MASK, "").strip(" :?") for _, text, _ in statements()}
    assert not asked & said


@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_are_five_short_and_true(split: str) -> None:
    rng = random.Random(5)
    for index in range(150):
        scene = scene_at(2, split, index)
        found = captions(scene, rng)
        assert len(found) == 5 and len(set(found)) >= 4
        pairs = {f"{t.colour} {t.shape}" for t in scene.objects}
        for text in found:
            assert 3 <= len(text.split()) <= 18, text
            singular = re.sub(r"\b(\w+) (crosses|\w+s)\b", lambda m: f"{m[1]} {PLURALS.get(m[2], m[2])}", text)
            named = re.findall(rf"\b({'|'.join(VALUES['colour'])}) ({'|'.join(SHAPES)})\b", singular)
            assert {" ".join(pair) for pair in named} <= pairs, text
            assert not re.search(r"\ba (?=[aeiou])|\ban (?=[^aeiou])|\bone \w+s\b", text), text


def test_a_thing_knows_that_it_is_held_out() -> None:
    assert Thing(0, 0, "red", "heart", "small", "plain").is_held_out
    assert not Thing(0, 0, "red", "star", "small", "plain").is_held_out
