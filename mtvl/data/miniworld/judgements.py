"""Many short judgements about one reading of a picture or two, and what catches the eye first, for pretraining.

A backbone that can tell where things stand does not yet say "yes" or "no" about it: that step is another skill, one bit
a statement, and an adapter with a few per cent of the weights has no room for it. Eight judgements a sample teach it in
a few thousand steps. The wording is not that of the benchmarks, and no held-out composition is mentioned.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from mtvl.data.miniworld.captions import salient
from mtvl.data.miniworld.grammar import (
    ATTRIBUTES,
    DIRECTIONS,
    NUMBER_WORDS,
    Kind,
    count,
    kind_of,
    kinds_of_form,
    named_things,
    quarter,
    stands,
    towards,
)
from mtvl.data.miniworld.scene import Scene, Thing

Asked = tuple[str, str]  # source, target
Judged = tuple[str, bool]  # statement, whether it holds
MOST = 8  # judgements a sample
_TRIES = 8  # draws for a statement with the wanted truth
_PLAIN = (("shape",), ("colour",), ("texture",), ("size",))
_FORMS = (("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("texture", "shape"), ("size", "colour"))
_WORDS = {"colour": "color", "shape": "shape", "size": "size", "texture": "surface"}


def judge(scene: Scene, rng: random.Random) -> Asked:
    """Up to eight statements about one picture and their truth as "yes" and "no", about half of each."""
    return _asked("judge:", _ONE, (scene,), rng)


def judge_pair(left: Scene, right: Scene, rng: random.Random) -> Asked:
    """Up to eight statements about two pictures and their truth."""
    return _asked("judge pair:", _TWO, (left, right), rng)


def glance(scene: Scene, rng: random.Random) -> Asked:
    """How many objects there are, and all of them as they catch the eye: large ones first, then in reading order."""
    form = rng.choice((("size", "colour", "shape"), ("colour", "shape")))
    named = " , ".join(kind_of(thing, form).words for thing in salient(scene))
    return "glance:", f"{len(scene.objects)} objects : {named}"


def _asked(
    prompt: str, makers: Sequence[Callable[..., Judged | None]], scenes: tuple[Scene, ...], rng: random.Random
) -> Asked:
    found = {}
    for _ in range(rng.randint(MOST // 2, MOST)):
        make, wanted = rng.choice(makers), rng.random() < 0.5
        drawn = [make(*scenes, rng)]
        while drawn[-1] and drawn[-1][1] != wanted and len(drawn) < _TRIES:
            drawn.append(make(*scenes, rng))
        if drawn[-1]:
            found[drawn[-1][0]] = drawn[-1][1]
    return f"{prompt} {' ; '.join(found)}", " ".join("yes" if holds else "no" for holds in found.values())


def _kind(rng: random.Random, forms: Sequence[tuple[str, ...]]) -> Kind:
    return rng.choice(kinds_of_form(rng.choice(forms), False))


def _some_named(
    scene: Scene, number: int, rng: random.Random, without: tuple[str, ...] = ()
) -> list[tuple[Thing, str]]:
    """`number` objects, each with a phrase that names it alone; [] when there are not as many."""
    named = [(t, [k for k in kinds if not k.is_held_out]) for t, kinds in named_things(scene, without)]
    named = [(t, kinds) for t, kinds in named if kinds]
    return [(t, rng.choice(kinds).the) for t, kinds in rng.sample(named, number)] if len(named) >= number else []


def _stands(scene: Scene, rng: random.Random) -> Judged | None:
    pair = _some_named(scene, 2, rng)
    if not pair:
        return None
    (a, the_a), (b, the_b) = pair
    said = rng.choice([d for d in DIRECTIONS if stands(a, d, b) != stands(b, d, a)])
    return rng.choice(("{} lies {} {}", "{} stays {} {}")).format(the_a, towards(said), the_b), stands(a, said, b)


def _keeps(scene: Scene, rng: random.Random) -> Judged | None:
    found = _some_named(scene, 1, rng)
    if not found:
        return None
    thing, the = found[0]
    said = rng.choice(("left", "right", "top", "bottom"))
    return rng.choice(("{the} keeps to the {side}", "{side} : {the}")).format(the=the, side=said), said in quarter(
        thing
    )


def _agree(scene: Scene, rng: random.Random) -> Judged | None:
    attribute = rng.choice(ATTRIBUTES)
    pair = _some_named(scene, 2, rng, without=(attribute,))
    if not pair:
        return None
    (a, the_a), (b, the_b) = pair
    text = rng.choice(("{} agrees with {} in {}", "{} and {} share one {}"))
    return text.format(the_a, the_b, _WORDS[attribute]), getattr(a, attribute) == getattr(b, attribute)


def _has(scene: Scene, rng: random.Random) -> Judged | None:
    attribute = rng.choice(ATTRIBUTES)
    found = _some_named(scene, 1, rng, without=(attribute,))
    if not found:
        return None
    thing, the = found[0]
    said = getattr(_kind(rng, ((attribute,),)), attribute)
    return f"{the} : {_WORDS[attribute]} {said}", said == getattr(thing, attribute)


def _compares(scene: Scene, rng: random.Random) -> Judged:
    form = rng.choice(_PLAIN)
    a, b = rng.sample(kinds_of_form(form, False), 2)
    difference, word = count(scene, a) - count(scene, b), rng.choice(("more", "fewer", "as many"))
    holds = {"more": difference > 0, "fewer": difference < 0, "as many": difference == 0}[word]
    return f"{word} {a.plural} {'as' if word == 'as many' else 'than'} {b.plural}", holds


def _numbers(scene: Scene, rng: random.Random) -> Judged:
    kind, number, word = _kind(rng, _PLAIN), rng.randint(1, 4), rng.choice(("exactly", "not less than", "up to"))
    found = count(scene, kind)
    holds = {"exactly": found == number, "not less than": found >= number, "up to": found <= number}[word]
    return f"{word} {kind.counted(number)}", holds


def _occurs(scene: Scene, rng: random.Random) -> Judged:
    a, b = _kind(rng, _FORMS), _kind(rng, _FORMS)
    in_a, in_b = count(scene, a) > 0, count(scene, b) > 0
    text, holds = rng.choice(
        ((f"{a.any} occurs", in_a), (f"{a.any} as well as {b.any}", in_a and in_b), (f"{a.any} , else {b.any}", in_a or in_b))
    )  # fmt: skip
    return text, holds


def _two_kinds(rng: random.Random) -> tuple[Kind, str, Kind]:
    a, b = rng.sample([k for form in _PLAIN[:2] for k in kinds_of_form(form, False)], 2)
    return a, rng.choice(DIRECTIONS), b


def _shows(scene: Scene, a: Kind, direction: str, b: Kind) -> bool:
    """Whether some object of kind `a` stands so to some object of kind `b`."""
    first, second = ([t for t in scene.objects if kind.matches(t)] for kind in (a, b))
    return any(stands(x, direction, y) for x in first for y in second)


def _somewhere(scene: Scene, rng: random.Random) -> Judged:
    a, said, b = _two_kinds(rng)
    return f"{a.any} lies {towards(said)} {b.any}", _shows(scene, a, said, b)


def _in_one(left: Scene, right: Scene, rng: random.Random) -> Judged | None:
    side, scene = rng.choice((("left", left), ("right", right)))
    found = rng.choice((_numbers, _occurs, _somewhere, _stands, _compares))(scene, rng)
    return (f"{side} picture , {found[0]}", found[1]) if found else None


def _in_some(left: Scene, right: Scene, rng: random.Random) -> Judged:
    kind = _kind(rng, _FORMS)
    a, b = count(left, kind) > 0, count(right, kind) > 0
    text, holds = rng.choice(
        (
            (f"both pictures show {kind.any}", a and b), (f"neither picture shows {kind.any}", not (a or b)),
            (f"only one picture shows {kind.any}", a != b), (f"some picture shows {kind.any}", a or b),
        )
    )  # fmt: skip
    return text, holds


def _somewhere_in_some(left: Scene, right: Scene, rng: random.Random) -> Judged:
    a, said, b = _two_kinds(rng)
    holds = _shows(left, a, said, b) or _shows(right, a, said, b)
    return f"some picture , {a.any} lies {towards(said)} {b.any}", holds


def _together(left: Scene, right: Scene, rng: random.Random) -> Judged | None:
    kind = _kind(rng, _PLAIN)
    number = count(left, kind) + count(right, kind)
    said = max(1, number + rng.choice((-1, 0, 0, 1)))
    if said >= len(NUMBER_WORDS):
        return None
    word = rng.choice(("", "", "not less than "))
    return f"taken together {word}{kind.counted(said)}", number >= said if word else number == said


def _against(left: Scene, right: Scene, rng: random.Random) -> Judged:
    kind = Kind() if rng.random() < 0.3 else _kind(rng, _PLAIN)
    difference, word = count(left, kind) - count(right, kind), rng.choice(("more", "fewer", "as many"))
    holds = {"more": difference > 0, "fewer": difference < 0, "as many": difference == 0}[word]
    return f"left against right , {word} {kind.plural}", holds


_ONE = (_stands, _stands, _keeps, _keeps, _agree, _has, _compares, _numbers, _occurs, _somewhere)
_TWO = (_in_one, _in_one, _in_one, _in_some, _in_some, _somewhere_in_some, _together, _against)
