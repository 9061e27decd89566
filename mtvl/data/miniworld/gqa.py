"""Questions in the style of GQA: semantic programs, types, groups, full answers, and what one answer entails."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mtvl.data.miniworld.balance import Asked, Maker
from mtvl.data.miniworld.grammar import (
    ATTRIBUTES,
    DIRECTIONS,
    OPPOSITE,
    VALUES,
    Kind,
    beyond,
    count,
    kinds_of_form,
    stands,
    towards,
)
from mtvl.data.miniworld.questions import YES_NO, matching, named, named_pairs, some, yes
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
class _Ref:
    """An object of a scene with the reference that a question uses for it."""

    scene: Scene
    kind: Kind
    thing: Thing

    @property
    def id(self) -> int:
        return self.scene.objects.index(self.thing)

    def steps(self, start: int = 0) -> list[Step]:
        """Program that finds the object; `start` is the number of its first step."""
        steps: list[Step] = [("select", (), f"{self.kind.shape or 'object'} ({self.id})")]
        for attribute, value in self.kind.attributes.items():
            if attribute != "shape":
                steps.append((f"filter {WORD[attribute]}", (start + len(steps) - 1,), value))
        return steps


def query(ref: _Ref, attribute: str) -> GqaAsked:
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
        group=_group(attribute), named=((ref.kind, ref.id),), answer_id=ref.id if attribute == "shape" else None,
    )  # fmt: skip


def verify(ref: _Ref, attribute: str, value: str) -> GqaAsked:
    """ "is the star red?" """
    truth, noun = getattr(ref.thing, attribute) == value, _as_noun(attribute, value)
    steps = ref.steps()
    steps.append((f"verify {WORD[attribute]}", (len(steps) - 1,), value))
    return GqaAsked(
        "verify", f"is {ref.kind.the} {noun}?", yes(truth), YES_NO, (ref.kind,), (ref.thing,), program=tuple(steps),
        full_answer=f"{yes(truth)}, {ref.kind.the} is {_not(truth)}{noun}.", detailed="verifyAttr",
        named=((ref.kind, ref.id),),
    )  # fmt: skip


def choose(ref: _Ref, attribute: str, pair: tuple[str, str]) -> GqaAsked:
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


def relation(a: _Ref, direction: str, b: _Ref) -> GqaAsked:
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


def choose_relation(a: _Ref, pair: tuple[str, str], b: _Ref) -> GqaAsked:
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


def query_beyond(ref: _Ref, direction: str, other: Thing, attribute: str) -> GqaAsked:
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
        semantic="rel" if is_name else "attr", detailed="relS" if is_name else "color", group=_group(attribute),
        named=((ref.kind, ref.id),), answer_id=ref.scene.objects.index(other) if is_name else None,
    )  # fmt: skip


def query_side(ref: _Ref, axis: str) -> GqaAsked:
    """ "on which side of the picture is the star?" """
    side, texts = _side(ref.thing, axis), {"hposition": "on which side", "vposition": "in which half, top or bottom,"}
    steps = ref.steps()
    steps.append(("query", (len(steps) - 1,), axis))
    return GqaAsked(
        f"query {axis}", f"{texts[axis]} of the picture is {ref.kind.the}?", side, SIDES[axis], (ref.kind,),
        (ref.thing,), program=tuple(steps), full_answer=f"{ref.kind.the} is {_at_side(side)} of the picture.",
        structural="query", detailed="positionQuery", group=axis, named=((ref.kind, ref.id),),
    )  # fmt: skip


def verify_side(ref: _Ref, axis: str, side: str) -> GqaAsked:
    """ "is the star on the left side of the picture?" """
    truth = _side(ref.thing, axis) == side
    steps = ref.steps()
    steps.append((f"verify {axis}", (len(steps) - 1,), side))
    place = f"{_at_side(side)} of the picture"
    return GqaAsked(
        "verify side", f"is {ref.kind.the} {place}?", yes(truth), YES_NO, (ref.kind,), (ref.thing,),
        program=tuple(steps), full_answer=f"{yes(truth)}, {ref.kind.the} is {_not(truth)}{place}.",
        detailed="positionVerify", named=((ref.kind, ref.id),),
    )  # fmt: skip


def same(a: _Ref, b: _Ref, attribute: str) -> GqaAsked:
    """ "do the star and the circle have the same color?" """
    truth = getattr(a.thing, attribute) == getattr(b.thing, attribute)
    steps = a.steps()
    left = len(steps) - 1
    steps += b.steps(left + 1)
    word = "shape" if attribute == "shape" else WORD[attribute]
    steps.append((f"same {word}", (left, len(steps) - 1), ""))
    both = f"{a.kind.the} and {b.kind.the}"
    return GqaAsked(
        "same", f"do {both} have the same {word}?", yes(truth), YES_NO, (a.kind, b.kind), (a.thing, b.thing),
        program=tuple(steps), full_answer=f"{yes(truth)}, {both} {'' if truth else 'do not '}have the same {word}.",
        structural="compare", detailed="twoSame", named=((a.kind, a.id), (b.kind, b.id)),
    )  # fmt: skip


def _as_noun(attribute: str, value: str) -> str:
    return f"a {value}" if attribute == "shape" else value


def _not(truth: bool) -> str:
    return "" if truth else "not "


def _group(attribute: str) -> str:
    return "shape" if attribute == "shape" else WORD[attribute]


def _side(thing: Thing, axis: str) -> str:
    place = thing.col if axis == "hposition" else thing.row
    return SIDES[axis][place >= LATTICE // 2]


def _at_side(side: str) -> str:
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


def _refs(scene: Scene, without: Sequence[str] = ()) -> list[_Ref]:
    return [_Ref(scene, kind, thing) for thing, kind in named(scene, without)]


def _joins(kind: Kind, attribute: str, value: str) -> bool:
    return Kind(**{**kind.attributes, attribute: value}).is_held_out


def _make_query(attribute: str) -> Maker:
    return lambda scene, rng, with_held_out: [query(ref, attribute) for ref in _refs(scene, (attribute,))]


def _make_verify(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    found = []
    for attribute in ATTRIBUTES:
        refs = _refs(scene, (attribute,))
        for ref in rng.sample(refs, min(4, len(refs))):
            values = [v for v in VALUES[attribute] if with_held_out or not _joins(ref.kind, attribute, v)]
            found += [verify(ref, attribute, value) for value in values]
    return [*(a for a in found if a.answer == "yes"), *some(rng, found)]


def _make_choose(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    found = []
    for attribute in ATTRIBUTES:
        refs = _refs(scene, (attribute,))
        for ref in rng.sample(refs, min(2, len(refs))):
            right = getattr(ref.thing, attribute)
            for other in VALUES[attribute]:
                if other != right and (with_held_out or not _joins(ref.kind, attribute, other)):
                    found += [choose(ref, attribute, (right, other)), choose(ref, attribute, (other, right))]
    return some(rng, found)


def _make_exist(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    forms = (("shape",), ("colour",), ("colour", "shape"), ("texture", "shape"), ("size", "colour"))
    form = rng.choice(forms)
    return [exist(scene, kind) for kind in kinds_of_form(form, with_held_out)]


def _make_logic(word: str) -> Maker:
    def make(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
        kinds = kinds_of_form(rng.choice((("shape",), ("colour",), ("colour", "shape"))), with_held_out)
        there = [k for k in kinds if count(scene, k)]
        absent = [k for k in kinds if not count(scene, k)]
        found = []
        for first, second in ((there, there), (there, absent), (absent, there), (absent, absent)):
            for _ in range(4):
                a, b = rng.choice(first or kinds), rng.choice(second or kinds)
                if a != b:
                    found.append(logic(scene, a, b, word))
        return found

    return make


def _ref_pairs(scene: Scene, rng: random.Random, without: Sequence[str] = ()) -> list[tuple[_Ref, _Ref]]:
    pairs = [(_Ref(scene, ak, a), _Ref(scene, bk, b)) for a, ak, b, bk in named_pairs(scene, without)]
    return rng.sample(pairs, min(12, len(pairs)))


def _make_relation(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    return [
        relation(a, direction, b)
        for a, b in _ref_pairs(scene, rng)
        for direction in DIRECTIONS
        if stands(a.thing, direction, b.thing) or stands(b.thing, direction, a.thing)
    ]


def _make_choose_relation(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    return [
        choose_relation(a, (direction, OPPOSITE[direction]), b)
        for a, b in _ref_pairs(scene, rng)
        for direction in DIRECTIONS
        if stands(a.thing, direction, b.thing) or stands(b.thing, direction, a.thing)
    ]


def _make_beyond(attribute: str) -> Maker:
    def make(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
        found = []
        for ref in _refs(scene):
            for direction in DIRECTIONS:
                others = beyond(scene, direction, ref.thing)
                if len(others) == 1:
                    found.append(query_beyond(ref, direction, others[0], attribute))
        return found

    return make


def _make_side(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    axis = rng.choice(tuple(SIDES))
    return [query_side(ref, axis) for ref in _refs(scene)]


def _make_verify_side(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    return [verify_side(ref, axis, side) for ref in _refs(scene) for axis, sides in SIDES.items() for side in sides]


def _make_same(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    attribute = rng.choice(ATTRIBUTES)
    pairs = [(_Ref(scene, ak, a), _Ref(scene, bk, b)) for a, ak, b, bk in named_pairs(scene, (attribute,))]
    return [same(a, b, attribute) for a, b in rng.sample(pairs, min(40, len(pairs)))]


GQA_FORMS: dict[str, tuple[Maker, float]] = {
    "exist": (_make_exist, 7), "logic or": (_make_logic("or"), 3), "logic and": (_make_logic("and"), 3),
    "verify": (_make_verify, 6), "relation": (_make_relation, 8), "same": (_make_same, 4),
    "verify side": (_make_verify_side, 4), "choose": (_make_choose, 5), "choose relation": (_make_choose_relation, 4),
    "query colour": (_make_query("colour"), 14), "query shape": (_make_query("shape"), 11),
    "query texture": (_make_query("texture"), 7), "query size": (_make_query("size"), 3),
    "query shape beyond": (_make_beyond("shape"), 9), "query colour beyond": (_make_beyond("colour"), 7),
    "query side": (_make_side, 5),
}  # fmt: skip


def entailments(scene: Scene, asked: GqaAsked, rng: random.Random, with_held_out: bool) -> list[tuple[GqaAsked, bool]]:
    """Questions whose answers follow from the answer to `asked`, each with True when it means the same question."""
    refs = [_Ref(scene, kind, scene.objects[number]) for kind, number in asked.named]
    form = asked.form.split()[0]
    if form in ("query", "choose", "verify") and len(refs) == 1 and "beyond" not in asked.form:
        return [(found, False) for found in _entailed_by_attribute(scene, asked, refs[0], rng, with_held_out)]
    if form == "query":
        other = asked.focus[1]
        found = [exist(scene, Kind(**{asked.form.split()[1]: asked.answer}))]
        extra = [kind for thing, kind in named(scene) if thing is other][:1]
        direction = next(d for d in DIRECTIONS if f" {d} " in asked.text)
        found += [relation(_Ref(scene, kind, other), direction, refs[0]) for kind in extra]
        return [(f, False) for f in found]
    if form in ("relation", "choose") and len(refs) == 2:
        direction = next(d for d in DIRECTIONS if stands(refs[0].thing, d, refs[1].thing) and _names_axis(asked, d))
        turned = relation(refs[1], OPPOSITE[direction], refs[0])
        straight = relation(refs[0], direction, refs[1])
        is_twin = form == "relation" and asked.answer == "yes"
        return [(turned, is_twin)] + ([] if is_twin else [(straight, False)])
    if form == "same":
        attribute = next(a for a in ATTRIBUTES if asked.text.endswith(f" {_group(a)}?"))
        found = [same(refs[1], refs[0], attribute)]
        return [(f, True) for f in found]
    if form == "exist":
        return [(f, False) for f in _entailed_by_existence(scene, asked, rng, with_held_out)]
    return [(exist(scene, kind), False) for kind in asked.kinds if _settles(asked, scene, kind)]


def _names_axis(asked: GqaAsked, direction: str) -> bool:
    horizontal = " left " in asked.text or " right " in asked.text
    return horizontal == direction.endswith("of")


def _settles(asked: GqaAsked, scene: Scene, kind: Kind) -> bool:
    """Whether "both ... and" / "either ... or" with this answer tells that `kind` is there or not."""
    return (asked.form == "logic and") == (asked.answer == "yes") and (count(scene, kind) > 0) == (
        asked.answer == "yes"
    )


def _entailed_by_attribute(
    scene: Scene, asked: GqaAsked, ref: _Ref, rng: random.Random, with_held_out: bool
) -> list[GqaAsked]:
    operation, _, argument = asked.program[-1]
    what = argument if operation == "query" else operation.split()[1]
    if what in SIDES:
        side = _side(ref.thing, what)
        other = next(s for s in SIDES[what] if s != side)
        return [f for f in (verify_side(ref, what, side), verify_side(ref, what, other)) if f.text != asked.text]
    attribute = next(name for name, word in WORD.items() if word == what)
    value = getattr(ref.thing, attribute)
    if asked.form == "verify" and asked.answer == "no":
        return []  # that the star is not red says nothing about which color it has
    wrong = [v for v in VALUES[attribute] if v != value and (with_held_out or not _joins(ref.kind, attribute, v))]
    found = [verify(ref, attribute, value), exist(scene, Kind(**{**ref.kind.attributes, attribute: value}))]
    if wrong:
        found.append(verify(ref, attribute, rng.choice(wrong)))
    return [f for f in found if f.text != asked.text]


def _entailed_by_existence(
    scene: Scene, asked: GqaAsked, rng: random.Random, with_held_out: bool
) -> list[GqaAsked]:
    parts = asked.kinds[0].attributes
    if asked.answer == "yes":  # a red star is a star
        return [exist(scene, Kind(**{k: v})) for k, v in parts.items() if len(parts) > 1 and k in ("colour", "shape")]
    free = [name for name in ATTRIBUTES if name not in parts]
    name = rng.choice(free)
    narrower = [Kind(**{**parts, name: value}) for value in VALUES[name]]
    allowed = [kind for kind in narrower if with_held_out or not kind.is_held_out]
    return [exist(scene, rng.choice(allowed))]
