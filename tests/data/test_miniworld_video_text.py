"""Texts about episodes: true by a second reading of the places, short, balanced, and silent about the answer."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import pytest
import torch

from mtvl.data.miniworld.episode import Actor, Episode, episode_at
from mtvl.data.miniworld.grammar import QUARTERS, VALUES
from mtvl.data.miniworld.language import MASK
from mtvl.data.miniworld.scene import HELD_OUT, scene_at
from mtvl.data.miniworld.video_language import cloze_episode, pick_episode, pick_scene, video_sentences
from mtvl.data.miniworld.video_records import VideoRows, how2_rows, tv_rows, yc2_rows

WAYS = {(0, -1): "left", (0, 1): "right", (-1, 0): "up", (1, 0): "down"}
TV_VIDEOS = {f"miniworld_s01e{i:04d}": episode_at(7, "test", i) for i in range(260)}
SEGMENTS = {f"ep{i // 4:04d}_{i % 4}": episode_at(7, "test", i, 4, 1) for i in range(200)}
PRETRAIN = [episode_at(9, "pretrain", i, *((8, 3) if i % 4 else (4, 1))) for i in range(300)]


@pytest.fixture(scope="module")
def tv() -> VideoRows:
    return tv_rows(TV_VIDEOS, "test", random.Random(1))


@pytest.fixture(scope="module")
def how2() -> VideoRows:
    return how2_rows(TV_VIDEOS, "test", random.Random(2))


class Witness:
    """Sees the places of an episode, never its events, and hears its subtitles as text."""

    def __init__(self, episode: Episode, lines: list[str]) -> None:
        self.actors, self.places, self.lines = episode.actors, episode.places, lines
        self.steps = [t for t in range(len(self.places) - 1) if self.places[t] != self.places[t + 1]]

    def way(self, actor: int, tick: int) -> str:
        a, b = self.places[tick][actor], self.places[tick + 1][actor]
        return WAYS.get((b // 2 - a // 2, b % 2 - a % 2), "") if min(a, b) >= 0 else ""

    def changed(self, tick: int) -> list[int]:
        return [i for i, (a, b) in enumerate(zip(self.places[tick], self.places[tick + 1], strict=True)) if a != b]

    def kind(self, tick: int) -> tuple[str, int, int]:
        """(kind, who acts, who is acted on) of the passage after `tick`."""
        now, then, changed = self.places[tick], self.places[tick + 1], self.changed(tick)
        if len(changed) == 1:
            (a,) = changed
            return ("appear" if now[a] < 0 else "vanish" if then[a] < 0 else "move"), a, -1
        a, b = changed
        if then[a] == now[b] and then[b] == now[a]:
            return "swap", a, b
        return ("push", a, b) if then[a] == now[b] else ("push", b, a)

    def find(self, text: str) -> int:
        """The actor that a phrase means."""
        speaker = re.fullmatch(r"the object that (\w+) watches", text)
        if speaker or text == "the important object":
            text = described([x for x in self.lines if (f" {speaker[1]} :" in x if speaker else "important" in x)][0])
        elif not text.startswith("the "):
            (line,) = [x for x in self.lines if re.search(rf"\b{text}\b", x)]
            text = described(line)
        wanted = [w for w in text.split()[1:] if w != "object"]
        found = [i for i, a in enumerate(self.actors) if all(w in attributes(a) for w in wanted)]
        assert len(found) == 1, (text, self.actors)
        return found[0]

    def does(self, actor: int, phrase: str, tick: int) -> bool:
        """Could `phrase` be said of `actor` and the passage after `tick`?"""
        kind, a, b = self.kind(tick)
        verb, _, rest = plain(phrase).partition(" ")
        if verb == "moves":
            return self.way(actor, tick) == rest
        if verb == "swaps":
            partner = self.find(rest.removeprefix("with ")) if rest != "places" else -1
            return kind == "swap" and actor in (a, b) and (partner < 0 or {actor, partner} == {a, b})
        if verb == "pushes":
            return kind == "push" and actor == a and (rest == "something" or self.find(rest) == b)
        return kind == verb.rstrip("s").replace("vanishe", "vanish") and actor == a

    def clause(self, text: str) -> tuple[int, str]:
        match = re.fullmatch(r"(.+?) ((?:moves|pushes|swaps|appears|vanishes)\b.*)", plain(text))
        assert match, text
        return self.find(match[1]), match[2]

    def step(self, text: str) -> int:
        """The number of the only passage that a clause describes."""
        actor, phrase = self.clause(text)
        found = [n for n, tick in enumerate(self.steps) if self.does(actor, phrase, tick)]
        assert len(found) == 1, text
        return found[0]

    def quarter(self, actor: int, tick: int) -> str:
        return (*QUARTERS, "outside")[self.places[tick][actor]]


WORDS = [*(v for values in VALUES.values() for v in values), "object"]
SAME = {"goes": "moves", "shoves": "pushes", "trades": "swaps", "shows up": "appears", "disappears": "vanishes",
        "showing up": "that appears", "trading with": "that swaps with", "shoved by": "that is pushed by",
        "is going": "moves", "is that": "is", "going": "that moves"}  # fmt: skip


def plain(text: str) -> str:
    """How2QA's verbs in TVQA's words."""
    return re.sub(r"\b(goes|shoves|trades|shows up|disappears)\b", lambda m: SAME[m[0]], text)


def described(line: str) -> str:
    """The description of an object in a subtitle."""
    match = re.search(rf"\bthe ((?:{'|'.join(WORDS)})\b ?)+", line)
    assert match, line
    return match[0].strip()


def attributes(actor: Actor) -> tuple[str, ...]:
    return actor.colour, actor.shape, actor.size, actor.texture


def is_right(witness: Witness, question: str, option: str) -> bool:
    """A second reading of question and option."""
    for pattern, check in PATTERNS:
        match = re.fullmatch(pattern, question)
        if match:
            return check(witness, match.groupdict(), option)
    raise AssertionError(f"no reading of {question!r}")


def _doing(w: Witness, g: dict[str, str], option: str) -> bool:
    actor, moment = w.find(g["x"]), g.get("m") or ""
    own = [t for t in w.steps if actor in w.changed(t)]
    if moment in ("after", "before"):
        tick = w.steps[w.step(g["c"]) + (1 if moment == "after" else -1)]
    else:
        assert moment or len(own) == 1
        tick = own[0 if moment == "first" else -1]
    return w.does(actor, option, tick)


def _where(w: Witness, g: dict[str, str], option: str) -> bool:
    tick = {"at the start": 0, "in the beginning": 0, "at the end": -1, "when it is finished": -1}.get(g["m"])
    if tick is None:
        tick = w.steps[w.step(re.sub(r"^(when|once) ", "", g["m"]))] + 1
    return w.quarter(w.find(g["x"]), tick) == option


def _way(w: Witness, g: dict[str, str], option: str) -> bool:
    actor = w.find(g["x"])
    going = [w.way(actor, t) or "diagonal" for t in w.steps if min(w.places[t][actor], w.places[t + 1][actor]) >= 0
             and actor in w.changed(t)]  # fmt: skip
    assert len(going) < 2
    return (going or ["nowhere"])[0] == option


def _order(w: Witness, g: dict[str, str], option: str) -> bool:
    step = {"first": 0, "last": -1, "final": -1}.get(g["m"])
    if step is None:
        step = w.step(g["c"]) + (1 if g["m"] == "after" else -1)
    actor, phrase = w.clause(option)
    return w.does(actor, phrase, w.steps[step])


def _looks(w: Witness, g: dict[str, str], option: str) -> bool:
    return option in attributes(w.actors[w.find(g["x"])])


def _who(w: Witness, g: dict[str, str], option: str) -> bool:
    """Every object that fits; an option must describe all of them."""
    text = plain(g["p"])
    if match := re.fullmatch(r"(?:is in the |is placed )?(top \w+|bottom \w+)(?: object)? (.*)", text):
        tick = 0 if match[2] in ("at the start", "in the beginning") else -1
        fitting = {i for i in range(len(w.actors)) if w.quarter(i, tick) == match[1]}
    elif match := re.fullmatch(r"(?:acts|acting) in the (\w+) step", text):
        fitting = {w.kind(w.steps[("first", "second", "third").index(match[1])])[1]}
    elif match := re.fullmatch(r"does (.+) push|that (.+) pushes|is pushed by (.+)|pushed by (.+)", text):
        pusher = w.find(next(x for x in match.groups() if x))
        fitting = {w.kind(t)[2] for t in w.steps if w.kind(t)[:2] == ("push", pusher)}
    else:
        verb = text.removeprefix("that ")
        fitting = {i for i in range(len(w.actors)) for t in w.steps if w.does(i, verb, t)}
    assert len(fitting) == 1, (text, fitting)
    wanted = [x for x in option.split() if x not in ("the", "object")]
    return all(x in attributes(w.actors[i]) for i in fitting for x in wanted)


def how2_who(text: str) -> str:
    text = (
        text.replace("is shoved by", "is pushed by").replace("shoved by", "is pushed by").replace("trading", "trades")
    )
    return text.replace("showing up", "shows up").replace("is going", "goes").replace("going", "goes")


PATTERNS = [
    (r"what does (?P<x>.+?) do(?: right)?(?: (?P<m>first|last|after|before))?(?: (?P<c>.+))?\?", _doing),
    (r"what is the (?P<m>first|last) thing (?P<x>.+) is doing\?", _doing),
    (r"what is (?P<x>.+) doing in the step (?P<m>after|before) (?P<c>.+)\?", _doing),
    (r"what is (?P<x>.+) doing in this video\?", _doing),
    (r"(?:where|in which corner) is (?P<x>.+?) (?P<m>(?:at the|in the|when|once) .+)\?", _where),
    (r"(?:which way does (?P<x>.+) go)\?", _way),
    (r"in what direction is (?P<x>.+) going\?", _way),
    (r"what happens (?:right )?(?P<m>first|last|after|before) ?(?P<c>.+)?\?", _order),
    (r"what is the (?P<m>first|final) step\?", _order),
    (r"what is the step (?P<m>after|before) (?P<c>.+)\?", _order),
    (r"what (?:color|shape) is the object (?P<p>that (?!\w+ watches).+)\?", _who),
    (r"what (?:color|shape) is the (?P<p>(?:top|bottom) .+)\?", _who),
    (r"what is the (?:color|shape) of the object (?P<p>(?!that \w+ watches).+)\?", _who),
    (r"which object (?P<p>.+)\?", _who),
    (r"what object (?P<p>.+)\?", _who),
    (r"what (?:color|shape) is (?P<x>.+)\?", _looks),
    (r"what is the (?:color|shape) of (?P<x>.+)\?", _looks),
]


def lines_of(rows: VideoRows) -> dict[str, list[str]]:
    return {row["vid_name"]: [line["text"] for line in row["sub"]] for row in rows.subtitles}


def check_questions(rows: VideoRows, task: str, options: int) -> None:
    lines = lines_of(rows)
    for row in rows.files[task]:
        witness = Witness(TV_VIDEOS[row["vid_name"]], lines[row["vid_name"]])
        question = how2_who(row["q"]) if re.search(r"what object|of the object", row["q"]) else row["q"]
        right = [i for i in range(options) if is_right(witness, question, row[f"a{i}"])]
        assert right == [row["answer_idx"]], (row, witness.actors, witness.places, lines[row["vid_name"]])


def test_exactly_one_option_is_right_by_a_second_reading(tv: VideoRows, how2: VideoRows) -> None:
    check_questions(tv, "tvqa", 5)
    check_questions(how2, "how2qa", 4)


def test_rows_have_the_fields_of_the_official_files(tv: VideoRows, how2: VideoRows) -> None:
    fields = ["qid", "q", "a0", "a1", "a2", "a3", "a4", "answer_idx", "ts", "vid_name", "show_name", "held_out"]
    for row in tv.files["tvqa"]:
        assert list(row) == fields
    for row in how2.files["how2qa"]:
        assert set(fields) - set(row) == {"a4", "show_name"}
    for row in (*tv.files["tvqa"], *how2.files["how2qa"]):
        start, end = map(float, row["ts"].split("-"))
        assert 0 <= start < end <= 12 and re.fullmatch(r"\d+\.\d\d-\d+\.\d\d", row["ts"])
    for row in tv.files["tvc"]:
        assert list(row) == ["vid_name", "duration", "ts", "clip_id", "descs", "held_out"]
        assert len(row["descs"]) == 4 and {d["type"] for d in row["descs"]} <= {"v", "t", "vt"}
    train = {f"v{i}": episode_at(7, "train", i) for i in range(40)}
    rows = tv_rows(train, "train", random.Random(3))
    assert all(len(row["descs"]) == 2 and not row["held_out"] for row in rows.files["tvc"])
    for row in yc2_rows(SEGMENTS, "test", random.Random(4)).files["yc2c"]:
        assert list(row) == ["vid_name", "clip_id", "duration", "descs", "held_out"]
        assert row["duration"] == 6 and len(row["descs"]) == 1 and set(row["descs"][0]) == {"desc", "desc_id"}
    for ids in (
        [r["qid"] for r in (*tv.files["tvqa"], *rows.files["tvqa"])],
        [r["clip_id"] for r in (*tv.files["tvc"], *rows.files["tvc"])],
        [d["desc_id"] for r in (*tv.files["tvc"], *rows.files["tvc"]) for d in r["descs"]],
    ):
        assert len(ids) == len(set(ids))
    per_video = Counter(row["vid_name"] for row in tv.files["tvqa"])
    assert min(per_video.values()) >= 3 and set(per_video) == set(TV_VIDEOS)


def test_texts_are_short(tv: VideoRows, how2: VideoRows) -> None:
    for rows in (tv, how2, yc2_rows(SEGMENTS, "test", random.Random(4))):
        for row in rows.subtitles:
            assert len(row["sub"]) <= 3
            for line in row["sub"]:
                assert line["text"][0] == " " and line["start"] < line["end"]
                assert len(re.findall(r"\w+", line["text"])) <= 9, line
    for row in (*tv.files["tvqa"], *how2.files["how2qa"]):
        assert len(row["q"].split()) <= 14
        assert all(1 <= len(row[f"a{i}"].split()) <= 5 for i in range(5) if f"a{i}" in row)
    for row in tv.files["tvc"]:
        assert all(len(d["desc"].split()) <= 16 for d in row["descs"])


def test_a_moment_holds_the_lines_that_its_question_needs(tv: VideoRows) -> None:
    subs = {row["vid_name"]: row["sub"] for row in tv.subtitles}
    needing = 0
    for row in tv.files["tvqa"]:
        start, end = map(float, row["ts"].split("-"))
        for line in subs[row["vid_name"]]:
            speaker = line["text"].split()[0]
            names = re.findall(r"\b(?:Max|Ben|Leo|Tim|Sam|Kim|Mia|Zoe|Eva|Lou)\b", line["text"])
            if any(name in row["q"] for name in names) or f"that {speaker} watches" in row["q"]:
                needing += 1
                assert line["start"] < end and line["end"] > start, (row, line)
    assert needing > 0.4 * len(tv.files["tvqa"])


def read_caption(witness: Witness, text: str) -> set[int]:
    """The passages that a caption or instruction may describe."""
    text = re.sub(r"^\w+ talks while |^we see ", "", text).replace("the red object that", "the object that")
    a, b, to = r"(?P<a>.+?)", r"(?P<b>.+?)", r"(?:to the )?(?P<to>left|right|up|down)"
    q = r"(?P<q>top left|top right|bottom left|bottom right)"
    forms = {
        "move": (rf"{a} (?:moves?|goes) {to}", rf"(?:move|bring) {a} {to}"),
        "push": (rf"{a} (?:comes and )?pushes {b} {to}", rf"{b} is pushed {to} by {a}", rf"push {b} {to} with {a}",
                 rf"use {a} to push {b} {to}"),
        "swap": (rf"{a} and {b} swap places", rf"{a} (?:swaps|changes) places with {b}",
                 rf"(?:swap|exchange) {a} and {b}"),
        "appear": (rf"{a} (?:appears in|comes in at) the {q}", rf"now there is {a} in the {q}",
                   rf"(?:add|put) {a} in the {q}"),
        "vanish": (rf"{a} (?:vanishes from|leaves) the {q}", rf"{a} in the {q} vanishes",
                   rf"(?:remove|take) {a} from the {q}"),
    }  # fmt: skip
    for kind, patterns in forms.items():
        for pattern in patterns:
            match = re.fullmatch(pattern, text)
            if match:
                g = {"b": None, "to": None, "q": None, **match.groupdict()}
                who = [witness.find(re.sub(r"^an? ", "the ", g[x])) for x in "ab" if g[x]]
                return {t for t in witness.steps if _is_told(witness, t, kind, who, g)}
    raise AssertionError(f"no reading of {text!r}")


def _is_told(w: Witness, tick: int, kind: str, who: list[int], g: dict[str, str]) -> bool:
    found, a, b = w.kind(tick)
    if found != kind or (set(who) != {a, b} if kind == "swap" else who != [x for x in (a, b) if x >= 0]):
        return False
    if g["to"]:
        return w.way(who[-1], tick) == g["to"]
    return not g["q"] or w.quarter(a, tick + (kind == "appear")) == g["q"]


def test_captions_of_a_moment_agree_and_are_true(tv: VideoRows) -> None:
    lines, types = lines_of(tv), Counter()
    for row in tv.files["tvc"]:
        witness = Witness(TV_VIDEOS[row["vid_name"]], lines[row["vid_name"]])
        shown = {t for t in witness.steps if row["ts"][0] < 1.5 * (t + 1) < row["ts"][1]}
        assert len(shown) == 1
        for desc in row["descs"]:
            types[desc["type"]] += 1
            if desc["type"] == "t":
                match = re.fullmatch(r"(\w+) (?:calls|watches) (the .+?)(?: ([A-Z]\w+))?", desc["desc"])
                said = [x for x in lines[row["vid_name"]] if x.startswith(f" {match[1]} :")]
                assert match[2] in said[0] and (match[3] or "") in said[0]
            else:
                assert shown <= read_caption(witness, desc["desc"]), (desc, witness.places)
    assert min(types.values()) > 50


def test_instructions_are_true_and_need_the_video() -> None:
    rows = yc2_rows(SEGMENTS, "test", random.Random(4))
    lines = lines_of(rows)
    for row in rows.files["yc2c"]:
        witness = Witness(SEGMENTS[row["vid_name"]], [])
        text = row["descs"][0]["desc"]
        assert read_caption(witness, text) == set(witness.steps)
        said = " ".join(lines[row["vid_name"]])
        assert not all(word in said for word in text.split() if word in WORDS or word in ("move", "push", "swap"))


def test_held_out_compositions_are_marked_and_stay_in_the_test_split(tv: VideoRows) -> None:
    assert 0.1 < sum(row["held_out"] for row in tv.files["tvqa"]) / len(tv.files["tvqa"]) < 0.5
    pairs = {f"{colour} {shape}" for colour, shape in HELD_OUT}
    for row in tv.files["tvc"]:
        if any(pair in d["desc"] for d in row["descs"] for pair in pairs):
            assert row["held_out"], row
    train = {f"v{i}": episode_at(7, "train", i) for i in range(150)}
    episodes = {f"s{i}_0": episode_at(7, "train", i, 4, 1) for i in range(100)}
    text = ""
    for rows in (tv_rows(train, "train", random.Random(5)), how2_rows(train, "train", random.Random(5)),
                 yc2_rows(episodes, "train", random.Random(5))):  # fmt: skip
        assert not any(row["held_out"] for file in rows.files.values() for row in file)
        text += str(rows)
    rng = random.Random(6)
    for i, episode in enumerate(PRETRAIN):
        items = (
            *cloze_episode(episode, rng),
            *pick_episode(episode, rng),
            *pick_scene(scene_at(9, "pretrain", i), rng),
        )
        text += " | ".join((*(t.replace(MASK, a) for t, a in items), *video_sentences(episode, rng)))
    assert not [pair for pair in pairs if pair in text]


def test_answers_are_balanced_by_place_and_by_form(tv: VideoRows, how2: VideoRows) -> None:
    for rows, task, options in ((tv, "tvqa", 5), (how2, "how2qa", 4)):
        places = Counter(row["answer_idx"] for row in rows.files[task])
        total = len(rows.files[task])
        assert total >= 1000
        assert max(places.values()) / total < 1 / options + 0.05
        verbs: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for row in rows.files[task]:
            right = plain(row[f"a{row['answer_idx']}"])
            verb = re.search(r"moves|pushes|swaps|appears|vanishes|nowhere|outside|top \w+|bottom \w+", right)
            form = re.sub(r"\b(the \w+ ?object|the \w+|[A-Z]\w+)\b", "x", row["q"])
            if verb:
                verbs[form][verb[0]] += 1
        for form, counter in verbs.items():
            if sum(counter.values()) > 60:
                assert max(counter.values()) / sum(counter.values()) < 0.32, (form, counter)


PRESENT = {"moved": "move", "pushed": "push", "swapped": "swap", "appeared": "appear", "vanished": "vanish"}
NUMBERS = {"one": 0, "two": 1, "three": 2, "first": 0, "second": 1, "third": 2, "last": -1}


def meant(w: Witness, who: str) -> set[int]:
    """The actors that a phrase may mean: one for "the star" or a name, any number for "a star", "something red"."""
    if re.match(r"an? |something |the ", who):  # "the plain heart" of a wrong option may be nobody
        words = [x for x in who.split()[1:] if x != "object"]
        return {i for i, actor in enumerate(w.actors) if all(x in attributes(actor) for x in words)}
    return {w.find(who)}


def happens(w: Witness, clause: str, tick: int) -> bool:
    """Does a clause in the past tense describe the passage after `tick`?"""
    kind, a, b = w.kind(tick)
    if match := re.fullmatch(r"what (.+) did : (\w+)", clause):
        clause = f"{match[1]} {match[2]}"
    if match := re.fullmatch(r"(?:way of )?(.+?) (?:went|:) (left|right|up|down)", clause):
        return any(w.way(i, tick) == match[2] for i in meant(w, match[1]))
    if match := re.fullmatch(r"(.+) was pushed by (.+)", clause):
        return kind == "push" and a in meant(w, match[2]) and b in meant(w, match[1])
    match = re.fullmatch(r"(.+?) (moved|pushed|swapped|appeared|vanished|stayed)(?: (.+))?", clause)
    assert match, clause
    who, rest = meant(w, match[1]), match[3] or ""
    if match[2] == "stayed":
        return any(w.places[tick][i] >= 0 and i not in w.changed(tick) for i in who)
    if kind != PRESENT[match[2]]:
        return False
    if kind == "swap":
        others = meant(w, rest.removeprefix("with ")) if rest else {0, 1, 2}
        return (a in who and b in others) or (b in who and a in others)
    if kind == "push" and rest:
        to = re.search(r" (left|right|up|down)$", rest)
        rest = rest.removesuffix(to[0]) if to else rest
        return a in who and b in meant(w, rest) and (not to or w.way(b, tick) == to[1])
    quarters = {"appear": w.quarter(a, tick + 1), "vanish": w.quarter(a, tick)}
    return a in who and (not rest or quarters.get(kind) == rest.removeprefix(", seen last "))


def number_of(w: Witness, clause: str) -> int:
    (found,) = [n for n, tick in enumerate(w.steps) if happens(w, clause, tick)]
    return found


def stands(w: Witness, text: str) -> bool | None:
    """Truth of a statement about one moment, None for another statement."""
    match = re.fullmatch(r"(at the start|in the end|(before|after) event (\w+)) ,? ?(.+)", text)
    if not match:
        return None
    tick = 0 if match[1] == "at the start" else -1
    if match[2]:
        tick = w.steps[NUMBERS[match[3]]] + (match[2] == "after")
    places, said = w.places[tick], match[4]
    if inner := re.fullmatch(r"one could count (\d) objects", said):
        return sum(p >= 0 for p in places) == int(inner[1])
    if inner := re.fullmatch(r"(.+) was there", said):
        return places[w.find(inner[1])] >= 0
    if inner := re.fullmatch(r"(.+) stood (?:to the (left|right) of|(above|below)) (.+)", said):
        (row, col), (row_b, col_b) = (divmod(places[w.find(x)], 2) for x in (inner[1], inner[4]))
        return {"left": col < col_b, "right": col > col_b, "above": row < row_b, "below": row > row_b}[
            inner[2] or inner[3]
        ]
    inner = re.fullmatch(r"(?:place of )?(.+?) (?:stood|:) (\w+ \w+)", said)
    assert inner, text
    return any(w.quarter(i, tick) == inner[2] for i in meant(w, inner[1]))


def is_told_true(w: Witness, text: str) -> bool:
    """Truth of a statement in the wording of pretraining, its mask filled in."""
    for pattern in (
        r"(?P<a>yes|no) : (?P<s>.+)",
        r"(?P<s>.+) \? (?P<a>yes|no)",
        r"right or not , (?P<s>.+) : (?P<a>yes|no)",
    ):
        if match := re.fullmatch(pattern, text):
            return is_told_true(w, match["s"]) == (match["a"] == "yes")
    if (truth := stands(w, text)) is not None:
        return truth
    kinds = Counter(w.kind(t)[0] for t in w.steps)
    if match := re.fullmatch(r"(.+) changed place (\d) times", text):
        i = w.find(match[1])
        return sum(i in w.changed(t) and min(w.places[t][i], w.places[t + 1][i]) >= 0 for t in w.steps) == int(match[2])
    if match := re.fullmatch(r"in all (\d) objects (\w+)", text):
        return kinds[PRESENT[match[2]]] == int(match[1])
    if match := re.fullmatch(r"number of (push|swap)e?s : (\d)", text):
        return kinds[match[1]] == int(match[2])
    if match := re.fullmatch(r"right (after|before) (.+) , (.+)", text):
        return happens(w, match[3], w.steps[number_of(w, match[2]) + (1 if match[1] == "after" else -1)])
    if match := re.fullmatch(r"(.+) in event (\w+)", text):
        return number_of(w, match[1]) == NUMBERS[match[2]]
    match = re.fullmatch(r"(?P<a>.+) (?P<m>before|after) (?P<b>.+)|(?P<m2>before|after) (?P<b2>.+) , (?P<a2>.+)", text)
    if match:
        first, second = (number_of(w, match[x] or match[f"{x}2"]) for x in "ab")
        return (first < second) == ((match["m"] or match["m2"]) == "before")
    match = re.fullmatch(r"(?:event (one|two|three) : |(first|second|third|last) , )?(.+)", text)
    assert match
    number = match[1] or match[2]
    if number is None:  # "the star stayed" means all the time, "the star moved" at some time
        every = all if re.search(r"stayed$", match[3]) else any
        return every(happens(w, match[3], t) for t in w.steps)
    return happens(w, match[3], w.steps[NUMBERS[number]])


def introduced(episode: Episode, text: str) -> tuple[Witness, str]:
    """A witness who knows the names that a text gives, and the rest of the text."""
    *names, rest = re.split(r"(?<= )\. (?=name |\S)", text) if text.startswith("name ") else [text]
    return Witness(episode, names), rest


def test_masked_statements_are_true_by_a_second_reading() -> None:
    rng = random.Random(11)
    answers: Counter[str] = Counter()
    for episode in PRETRAIN:
        for text, answer in cloze_episode(episode, rng):
            assert text.split().count(MASK) == 1
            witness, rest = introduced(episode, text)
            assert is_told_true(witness, rest.replace(MASK, answer)), (text, answer, episode)
            answers[answer] += 1
    assert min(answers[x] for x in (*PRESENT, "stayed", "yes", "no", "left", "up", "before", "after", *QUARTERS)) > 20
    assert abs(answers["yes"] - answers["no"]) < 0.2 * answers["yes"]


def test_options_to_point_at_hold_one_true_one() -> None:
    rng = random.Random(12)
    places: Counter[str] = Counter()
    for episode in PRETRAIN:
        for text, answer in pick_episode(episode, rng):
            statement, _, listed = text.partition(" a0: ")
            options = re.split(r"\. a\d: ", listed.removesuffix("."))
            assert 4 <= len(options) <= 5 and len(set(options)) == len(options)
            witness, rest = introduced(episode, statement)
            right = [f"a{i}" for i, o in enumerate(options) if is_told_true(witness, rest.replace(MASK, o))]
            assert right == [answer], (text, answer, episode)
            places[answer] += 1
    for i, scene in enumerate(scene_at(9, "pretrain", i) for i in range(100)):
        items = pick_scene(scene, random.Random(i))
        assert len(items) > 3 and all(f" {answer}: " in text for text, answer in items)
    four = [places[f"a{i}"] for i in range(4)]
    assert max(four) < 1.2 * min(four) and places["a4"] > 0.3 * max(four)


def text_features(row: dict, lines: list[str], option: str) -> list[int]:
    """Hashed words of an option, alone and joined with the words of question and subtitles."""
    names = [w for line in lines for w in re.findall(r"\b[A-Z]\w+", line)]
    question = re.findall(r"\w+", row["q"])
    said = set(re.findall(r"\w+", " ".join(lines)))
    words = option.split()
    found = [f"{w}" for w in words] + [f"n{len(words)}"] + [f"{w}|{q}" for w in words for q in question]
    found += [f"said {w in said} {w}" for w in words] + [f"asked {w in question}" for w in words]
    found += [f"{w}||{s}" for w in words for s in said] + [f"named {any(n in option for n in names)} {question[-1]}"]
    return [hash_of(text) for text in found]


def hash_of(text: str) -> int:
    value = 0
    for character in text:
        value = (value * 131 + ord(character)) % (1 << 15)
    return value


def text_only_accuracy(train: VideoRows, test: VideoRows, task: str, options: int, hint: str = "") -> float:
    """Accuracy in percent of a linear model over words, trained on `train`, that never sees a video.

    With a `hint` its words are added to every right option: what the model must find when there is something to find.
    """
    torch.manual_seed(0)
    bag = torch.nn.EmbeddingBag(1 << 15, 1, mode="sum")
    torch.nn.init.zeros_(bag.weight)
    optimizer = torch.optim.Adagrad(bag.parameters(), lr=0.03)

    def encode(rows: VideoRows) -> list[tuple[list[list[int]], int]]:
        lines, found = lines_of(rows), []
        for row in rows.files[task]:
            texts = [row[f"a{i}"] + hint * (i == row["answer_idx"]) for i in range(options)]
            found.append(([text_features(row, lines[row["vid_name"]], text) for text in texts], row["answer_idx"]))
        return found

    def logits(items: list[tuple[list[list[int]], int]]) -> torch.Tensor:
        flat = [ids for options_, _ in items for ids in options_]
        starts = torch.tensor([0, *map(len, flat)]).cumsum(0)[:-1]
        return bag(torch.tensor([i for ids in flat for i in ids]), starts).view(len(items), options)

    items, held = encode(train), encode(test)
    for _ in range(4):
        random.Random(0).shuffle(items)
        for first in range(0, len(items), 32):
            batch = items[first : first + 32]
            loss = torch.nn.functional.cross_entropy(logits(batch), torch.tensor([a for _, a in batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return 100 * float((logits(held).argmax(-1) == torch.tensor([a for _, a in held])).float().mean())


def test_words_alone_do_not_give_the_answer_away(tv: VideoRows, how2: VideoRows) -> None:
    """Measured 21.9 and 25.4 % on 1,040 questions each, where chance is 20 and 25."""
    videos = {f"v{i}": episode_at(7, "train", i) for i in range(400)}
    train = tv_rows(videos, "train", random.Random(8))
    assert text_only_accuracy(train, tv, "tvqa", 5, hint=" indeed") > 90
    assert text_only_accuracy(train, tv, "tvqa", 5) < 32
    assert text_only_accuracy(how2_rows(videos, "train", random.Random(8)), how2, "how2qa", 4) < 37
