"""Which GQA questions a scene offers, and which other questions one answer decides."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mtvl.data.miniworld.balance import Asked, Maker
from mtvl.data.miniworld.gqa import (
    SIDES,
    WORD,
    GqaAsked,
    Ref,
    choose,
    choose_relation,
    exist,
    group_of,
    logic,
    query,
    query_beyond,
    query_side,
    relation,
    same,
    side_of,
    verify,
    verify_side,
)
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
)
from mtvl.data.miniworld.questions import few, named, named_pairs
from mtvl.data.miniworld.scene import Scene


def _refs(scene: Scene, without: tuple[str, ...] = ()) -> list[Ref]:
    return [Ref(scene, kind, thing) for thing, kind in named(scene, without)]


def _joins(kind: Kind, attribute: str, value: str) -> bool:
    return Kind(**{**kind.attributes, attribute: value}).is_held_out


def _make_query(attribute: str) -> Maker:
    return lambda scene, rng, with_held_out: [query(ref, attribute) for ref in _refs(scene, (attribute,))]


def _make_verify(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    found = []
    for attribute in ATTRIBUTES:
        for ref in few(rng, _refs(scene, (attribute,)), 2):
            values = [v for v in VALUES[attribute] if with_held_out or not _joins(ref.kind, attribute, v)]
            found += [verify(ref, attribute, value) for value in values]
    return found


def _make_choose(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    found = []
    for attribute in ATTRIBUTES:
        for ref in few(rng, _refs(scene, (attribute,)), 1):
            right = getattr(ref.thing, attribute)
            for other in VALUES[attribute]:
                if other != right and (with_held_out or not _joins(ref.kind, attribute, other)):
                    found += [choose(ref, attribute, (right, other)), choose(ref, attribute, (other, right))]
    return found


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


def _ref_pairs(scene: Scene, rng: random.Random, number: int, without: tuple[str, ...] = ()) -> list[tuple[Ref, Ref]]:
    pairs = named_pairs(scene, rng, number, without)
    return [(Ref(scene, a_kind, a), Ref(scene, b_kind, b)) for a, a_kind, b, b_kind in pairs]


def _make_relation(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    return [
        relation(a, direction, b)
        for a, b in _ref_pairs(scene, rng, 8)
        for direction in DIRECTIONS
        if stands(a.thing, direction, b.thing) or stands(b.thing, direction, a.thing)
    ]


def _make_choose_relation(scene: Scene, rng: random.Random, with_held_out: bool) -> Sequence[Asked]:
    return [
        choose_relation(a, (direction, OPPOSITE[direction]), b)
        for a, b in _ref_pairs(scene, rng, 8)
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
    return [
        verify_side(ref, axis, side)
        for ref in few(rng, _refs(scene), 6)
        for axis, sides in SIDES.items()
        for side in sides
    ]


def _make_same(attribute: str) -> Maker:
    return lambda scene, rng, with_held_out: [
        same(a, b, attribute) for a, b in _ref_pairs(scene, rng, 24, (attribute,))
    ]


GQA_FORMS: dict[str, tuple[Maker, float]] = {
    "exist": (_make_exist, 7), "logic or": (_make_logic("or"), 3), "logic and": (_make_logic("and"), 3),
    "verify": (_make_verify, 6), "relation": (_make_relation, 8), "same colour": (_make_same("colour"), 1.5), "same shape": (_make_same("shape"), 1), "same size": (_make_same("size"), 0.5), "same texture": (_make_same("texture"), 1),
    "verify side": (_make_verify_side, 4), "choose": (_make_choose, 5), "choose relation": (_make_choose_relation, 4),
    "query colour": (_make_query("colour"), 14), "query shape": (_make_query("shape"), 11),
    "query texture": (_make_query("texture"), 7), "query size": (_make_query("size"), 3),
    "query shape beyond": (_make_beyond("shape"), 9), "query colour beyond": (_make_beyond("colour"), 7),
    "query side": (_make_side, 5),
}  # fmt: skip


def entailments(scene: Scene, asked: GqaAsked, rng: random.Random, with_held_out: bool) -> list[tuple[GqaAsked, bool]]:
    """Questions whose answers follow from the answer to `asked`, each with True when it means the same question."""
    refs = [Ref(scene, kind, scene.objects[number]) for kind, number in asked.named]
    form = asked.form.split()[0]
    if form in ("query", "choose", "verify") and len(refs) == 1 and "beyond" not in asked.form:
        return [(found, False) for found in _entailed_by_attribute(scene, asked, refs[0], rng, with_held_out)]
    if form == "query":
        attribute, other = asked.form.split()[1], asked.focus[1]
        kind = Kind(**{attribute: asked.answer})
        found = [exist(scene, kind)]
        if count(scene, kind) == 1:
            direction = next(d for d in DIRECTIONS if f" {d} " in asked.text)
            found.append(relation(Ref(scene, kind, other), direction, refs[0]))
        return [(f, False) for f in found]
    if form in ("relation", "choose") and len(refs) == 2:
        direction = next(d for d in DIRECTIONS if stands(refs[0].thing, d, refs[1].thing) and _names_axis(asked, d))
        turned = relation(refs[1], OPPOSITE[direction], refs[0])
        straight = relation(refs[0], direction, refs[1])
        is_twin = form == "relation" and asked.answer == "yes"
        return [(turned, is_twin)] + ([] if is_twin else [(straight, False)])
    if form == "same":
        attribute = next(a for a in ATTRIBUTES if asked.text.endswith(f" {group_of(a)}?"))
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
    scene: Scene, asked: GqaAsked, ref: Ref, rng: random.Random, with_held_out: bool
) -> list[GqaAsked]:
    operation, _, argument = asked.program[-1]
    what = argument if operation == "query" else operation.split()[1]
    if what in SIDES:
        side = side_of(ref.thing, what)
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


def _entailed_by_existence(scene: Scene, asked: GqaAsked, rng: random.Random, with_held_out: bool) -> list[GqaAsked]:
    parts = asked.kinds[0].attributes
    if asked.answer == "yes":  # a red star is a star
        return [exist(scene, Kind(**{k: v})) for k, v in parts.items() if len(parts) > 1 and k in ("colour", "shape")]
    free = [name for name in ATTRIBUTES if name not in parts]
    name = rng.choice(free)
    narrower = [Kind(**{**parts, name: value}) for value in VALUES[name]]
    allowed = [kind for kind in narrower if with_held_out or not kind.is_held_out]
    return [exist(scene, rng.choice(allowed))]
