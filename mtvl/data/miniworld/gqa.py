"""Building blocks of questions in the style of GQA: text, semantic program, types, group and full answer of each."""

from __future__ import annotations

from dataclasses import dataclass

from mtvl.data.miniworld.balance import Asked
from mtvl.data.miniworld.grammar import (
    VALUES,
    Kind,
    count,
    stands,
    towards,
)
from mtvl.data.miniworld.questions import YES_NO, matching, yes
from mtvl.data.miniworld.scene import LATTICE, Scene, Thing

Step = tuple[str, tuple[int, ...], str]  # operation, dependencies, argument
WORD = {"colour": "color", "shape": "name", "size": "size", "texture": "pattern"}
SIDES = {"hposition": ("left", "right"), "vposition": ("top", "bottom")}


@dataclass(frozen=True)
class GqaAsked(Asked):
    """A question with the fields that GQA adds. `group` is the global group of open questions, "" for the others."""

    program: tuple[Step, ...] = ()
    full_answer: str = ""
    structural: str = "verify"
    semantic: str = "attr"
    detailed: str = ""
    group: str = ""
    named: tuple[tuple[Kind, int], ...] = ()  # references in the text and the numbers of their objects
    answer_id: int | None = None  # number of the object that the answer names


@dataclass(frozen=True)
class Ref:
    """An object of a scene with the reference that a question uses for it."""

    scene: Scene
    kind: Kind
    thing: Thing

    @property
    def id(self) -> int:
        """Number of the object in the scene."""
        return self.scene.objects.index(self.thing)

    def steps(self, start: int = 0) -> list[Step]:
        """Program that finds the object; `start` is the number of its first step."""
        steps: list[Step] = [("select", (), f"{self.kind.shape or 'object'} ({self.id})")]
        for attribute, value in self.kind.attributes.items():
            if attribute != "shape":
                steps.append((f"filter {WORD[attribute]}", (start + len(steps) - 1,), value))
        return steps


def query(ref: Ref, attribute: str) -> GqaAsked:
    """ "what color is the star?", "what is the red object?" """
    value, the = getattr(ref.thing, attribute), ref.kind.the
    texts = {
        "colour": f"what color is {the}?", "shape": f"what is {the}?", "size": f"how large is {the}?",
        "texture": f"which pattern does {the} have?",
    }  # fmt: skip
    steps = ref.steps()
    steps.append(("query", (len(steps) - 1,), WORD[attribute]))
    return GqaAsked(
        f"query {attribute}", texts[attribute], value, VALUES[attribute], (ref.kind,), (ref.thing,),
        program=tuple(steps), full_answer=f"{the} is {_as_noun(attribute, value)}.", structural="query",
        semantic="cat" if attribute == "shape" else "attr",
        detailed={"shape": "categoryThis", "colour": "color"}.get(attribute, WORD[attribute]),
        group=group_of(attribute), named=((ref.kind, ref.id),), answer_id=ref.id if attribute == "shape" else None,
    )  # fmt: skip


def verify(ref: Ref, attribute: str, value: str) -> GqaAsked:
    """ "is the star red?" """
    truth, noun = getattr(ref.thing, attribute) == value, _as_noun(attribute, value)
    steps = ref.steps()
    steps.append((f"verify {WORD[attribute]}", (len(steps) - 1,), value))
    return GqaAsked(
        "verify", f"is {ref.kind.the} {noun}?", yes(truth), YES_NO, (ref.kind,), (ref.thing,), program=tuple(steps),
        full_answer=f"{yes(truth)}, {ref.kind.the} is {_not(truth)}{noun}.", detailed="verifyAttr",
        named=((ref.kind, ref.id),),
    )  # fmt: skip


def choose(ref: Ref, attribute: str, pair: tuple[str, str]) -> GqaAsked:
    """ "is the star red or blue?" """
    value, nouns = getattr(ref.thing, attribute), [_as_noun(attribute, v) for v in pair]
    steps = ref.steps()
    steps.append((f"choose {WORD[attribute]}", (len(steps) - 1,), "|".join(pair)))
    return GqaAsked(
        "choose", f"is {ref.kind.the} {nouns[0]} or {nouns[1]}?", value, pair, (ref.kind,), (ref.thing,), offers=True,
        program=tuple(steps), full_answer=f"{ref.kind.the} is {_as_noun(attribute, value)}.", structural="choose",
        detailed="chooseAttr", named=((ref.kind, ref.id),),
    )  # fmt: skip


def exist(scene: Scene, kind: Kind) -> GqaAsked:
    """ "is there a red star?" """
    found = matching(scene, kind)
    steps = _find_any(scene, kind)
    steps.append(("exist", (len(steps) - 1,), "?"))
    truth = bool(found)
    return GqaAsked(
        "exist", f"do you see {kind.any}?", yes(truth), YES_NO, (kind,), found, program=tuple(steps),
        full_answer=f"{yes(truth)}, there is {kind.any if truth else f'no {kind.words}'}.", semantic="obj",
        detailed="exist" if len(kind.attributes) == 1 else "existAttr",
    )  # fmt: skip


def logic(scene: Scene, a: Kind, b: Kind, word: str) -> GqaAsked:
    """ "is there either a star or a circle?", "is there both a star and a circle?" """
    first, second = count(scene, a) > 0, count(scene, b) > 0
    truth = first or second if word == "or" else first and second
    steps = _find_any(scene, a)
    steps.append(("exist", (len(steps) - 1,), "?"))
    left = len(steps) - 1
    steps += _find_any(scene, b, left + 1)
    steps.append(("exist", (len(steps) - 1,), "?"))
    steps.append((word, (left, len(steps) - 1), ""))
    text = f"is there {'either' if word == 'or' else 'both'} {a.any} {word} {b.any}?"
    return GqaAsked(
        f"logic {word}", text, yes(truth), YES_NO, (a, b), matching(scene, a, b), program=tuple(steps),
        full_answer=f"{yes(truth)}, that is {'right' if truth else 'wrong'}.", structural="logical", semantic="obj",
        detailed="existOr" if word == "or" else "existAnd",
    )  # fmt: skip


def relation(a: Ref, direction: str, b: Ref) -> GqaAsked:
    """ "is the star to the left of the circle?" """
    truth = stands(a.thing, direction, b.thing)
    steps = b.steps()
    steps.append(("verify rel", (len(steps) - 1,), f"{a.kind.shape or 'object'},{towards(direction)},s ({a.id})"))
    place = f"{towards(direction)} {b.kind.the}"
    return GqaAsked(
        "relation", f"is {a.kind.the} {place}?", yes(truth), YES_NO, (a.kind, b.kind), (a.thing, b.thing),
        program=tuple(steps), full_answer=f"{yes(truth)}, {a.kind.the} is {_not(truth)}{place}.", semantic="rel",
        detailed="relVerify", named=((a.kind, a.id), (b.kind, b.id)),
    )  # fmt: skip


def choose_relation(a: Ref, pair: tuple[str, str], b: Ref) -> GqaAsked:
    """ "is the star above or below the circle?" """
    right = next(d for d in pair if stands(a.thing, d, b.thing))
    steps = b.steps()
    argument = f"{a.kind.shape or 'object'},{towards(pair[0])}|{towards(pair[1])},s ({a.id})"
    steps.append(("choose rel", (len(steps) - 1,), argument))
    if pair[0].endswith("of"):
        offered = f"to the {pair[0].split()[0]} or to the {pair[1].split()[0]} of"
    else:
        offered = f"{pair[0]} or {pair[1]}"
    answers = (pair[0].split()[0], pair[1].split()[0])
    return GqaAsked(
        "choose relation", f"is {a.kind.the} {offered} {b.kind.the}?", right.split()[0], answers, (a.kind, b.kind),
        (a.thing, b.thing), offers=True, program=tuple(steps), semantic="rel", structural="choose",
        full_answer=f"{a.kind.the} is {towards(right)} {b.kind.the}.", detailed="relChooser",
        named=((a.kind, a.id), (b.kind, b.id)),
    )  # fmt: skip


def query_beyond(ref: Ref, direction: str, other: Thing, attribute: str) -> GqaAsked:
    """ "what is to the left of the star?", "what color is the object above the star?" """
    value, place = str(getattr(other, attribute)), f"{towards(direction)} {ref.kind.the}"
    steps = ref.steps()
    steps.append(("relate", (len(steps) - 1,), f"_,{towards(direction)},s ({ref.scene.objects.index(other)})"))
    steps.append(("query", (len(steps) - 1,), WORD[attribute]))
    is_name = attribute == "shape"
    return GqaAsked(
        f"query {attribute} beyond", f"what is {place}?" if is_name else f"what color is the object {place}?", value,
        VALUES[attribute], (ref.kind,), (ref.thing, other), program=tuple(steps), structural="query",
        full_answer=f"the {value} is {place}." if is_name else f"the object {place} is {value}.",
        semantic="rel" if is_name else "attr", detailed="relS" if is_name else "color", group=group_of(attribute),
        named=((ref.kind, ref.id),), answer_id=ref.scene.objects.index(other) if is_name else None,
    )  # fmt: skip


def query_side(ref: Ref, axis: str) -> GqaAsked:
    """ "on which side of the picture is the star?" """
    side, texts = side_of(ref.thing, axis), {"hposition": "on which side", "vposition": "in which half, top or bottom,"}
    steps = ref.steps()
    steps.append(("query", (len(steps) - 1,), axis))
    return GqaAsked(
        f"query {axis}", f"{texts[axis]} of the picture is {ref.kind.the}?", side, SIDES[axis], (ref.kind,),
        (ref.thing,), program=tuple(steps), full_answer=f"{ref.kind.the} is {_atside_of(side)} of the picture.",
        structural="query", detailed="positionQuery", group=axis, named=((ref.kind, ref.id),),
    )  # fmt: skip


def verify_side(ref: Ref, axis: str, side: str) -> GqaAsked:
    """ "is the star on the left side of the picture?" """
    truth = side_of(ref.thing, axis) == side
    steps = ref.steps()
    steps.append((f"verify {axis}", (len(steps) - 1,), side))
    place = f"{_atside_of(side)} of the picture"
    return GqaAsked(
        "verify side", f"is {ref.kind.the} {place}?", yes(truth), YES_NO, (ref.kind,), (ref.thing,),
        program=tuple(steps), full_answer=f"{yes(truth)}, {ref.kind.the} is {_not(truth)}{place}.",
        detailed="positionVerify", named=((ref.kind, ref.id),),
    )  # fmt: skip


def same(a: Ref, b: Ref, attribute: str) -> GqaAsked:
    """ "do the star and the circle have the same color?" """
    truth = getattr(a.thing, attribute) == getattr(b.thing, attribute)
    steps = a.steps()
    left = len(steps) - 1
    steps += b.steps(left + 1)
    word = "shape" if attribute == "shape" else WORD[attribute]
    steps.append((f"same {word}", (left, len(steps) - 1), ""))
    both = f"{a.kind.the} and {b.kind.the}"
    return GqaAsked(
        f"same {attribute}", f"do {both} have the same {word}?", yes(truth), YES_NO, (a.kind, b.kind), (a.thing, b.thing),
        program=tuple(steps), full_answer=f"{yes(truth)}, {both} {'' if truth else 'do not '}have the same {word}.",
        structural="compare", detailed="twoSame", named=((a.kind, a.id), (b.kind, b.id)),
    )  # fmt: skip


def _as_noun(attribute: str, value: str) -> str:
    return f"a {value}" if attribute == "shape" else value


def _not(truth: bool) -> str:
    return "" if truth else "not "


def group_of(attribute: str) -> str:
    """The global group of open questions for an attribute."""
    return "shape" if attribute == "shape" else WORD[attribute]


def side_of(thing: Thing, axis: str) -> str:
    """The side of the picture on which an object is, along "hposition" or "vposition"."""
    place = thing.col if axis == "hposition" else thing.row
    return SIDES[axis][place >= LATTICE // 2]


def _atside_of(side: str) -> str:
    return f"on the {side} side" if side in SIDES["hposition"] else f"in the {side} half"


def _find_any(scene: Scene, kind: Kind, start: int = 0) -> list[Step]:
    """Program for "a red star", which need not exist: GQA writes "-" for an object that is not there."""
    found = matching(scene, kind)
    number = str(scene.objects.index(found[0])) if found else "-"
    steps: list[Step] = [("select", (), f"{kind.shape or 'object'} ({number})")]
    for attribute, value in kind.attributes.items():
        if attribute != "shape":
            steps.append((f"filter {WORD[attribute]}", (start + len(steps) - 1,), value))
    return steps
