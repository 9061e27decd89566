"""Multiple-choice questions on episodes in the styles of TVQA and How2QA.

Every form offers options of one class and is balanced over them, and wrong options are made like right ones, so that
the text alone says next to nothing. Questions may call an object by a name that only a subtitle gives.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from mtvl.data.miniworld.balance import Balancer
from mtvl.data.miniworld.episode import EVENTS, MOVES, Episode, Event
from mtvl.data.miniworld.grammar import QUARTERS, VALUES, Kind
from mtvl.data.miniworld.subtitles import Script
from mtvl.data.miniworld.video_forms import (
    changes,
    is_present,
    is_told_once,
    joins_held_out,
    taking_part,
    way_of,
)
from mtvl.data.miniworld.video_styles import ASKABLE, Asking, Draft, Mention, Style

MAX_QUESTION_WORDS, MAX_OPTION_WORDS = 14, 5
_STEPS = ("first", "second", "third", "fourth")


def _clauses(asking: Asking) -> list[tuple[int, str, list[Mention]]]:
    """Events that a clause tells from all others: (number, clause, what it mentions)."""
    found = []
    for number, event in enumerate(asking.episode.events):
        if is_told_once(asking.episode, event):
            mentions = [asking.mention(actor) for actor in taking_part(event)]
            other = mentions[1] if len(mentions) > 1 else None
            found.append((number, f"{mentions[0].text} {asking.phrase(event, other)}", mentions))
    return found


def _wrong_way(asking: Asking, actor: int, tick: int) -> str:
    """A direction in which `actor` does not go between `tick` and the next."""
    return asking.rng.choice([way for way in MOVES if way != way_of(asking.episode, actor, tick)])


def _doing_options(asking: Asking, event: Event, actor: int, other: Mention | None) -> tuple[str, list[str]]:
    """What `actor` does in `event`, and one phrase for each of the other kinds."""
    right = asking.phrase(event, other)
    others = [i for i in range(len(asking.episode.actors)) if i != actor]
    rivals = []
    for kind in asking.rng.sample(EVENTS, len(EVENTS)):
        if kind != event.kind:
            way = _wrong_way(asking, actor, event.tick)
            partner = asking.mention(asking.rng.choice(others))
            rivals.append(asking.style.verbs[kind].format(y=partner.text, w=way))
    return right, rivals[: asking.style.options - 1]


def _doing(asking: Asking) -> list[Draft]:
    episode, found = asking.episode, []
    clauses = {number: (clause, mentions) for number, clause, mentions in _clauses(asking)}
    for number, event in enumerate(episode.events):
        if number in asking.script.told:
            continue
        for actor in taking_part(event) if event.kind == "swap" else (event.actor,):
            parts = [e for e in episode.events if actor in taking_part(e)]
            moments: list[tuple[str, str, list[Mention], tuple[int, int]]] = []
            if len(parts) == 1:
                moments.append(("doing", "", [], (event.tick, event.tick + 1)))
            else:
                moments += [("doing first", "", [], asking.whole)] if event is parts[0] else []
                moments += [("doing last", "", [], asking.whole)] if event is parts[-1] else []
            for step, form in ((-1, "doing after"), (1, "doing before")):
                clause, mentions = clauses.get(number + step, ("", []))
                if clause and actor not in [m.actor for m in mentions]:
                    ticks = sorted((event.tick, episode.events[number + step].tick))
                    moments.append((form, clause, mentions, (ticks[0], ticks[1] + 1)))
            for form, clause, mentions, ticks_ in moments:
                x = asking.mention(actor)
                other = next((i for i in taking_part(event) if i != actor), -1)
                y = asking.mention(other) if other >= 0 else None
                right, rivals = _doing_options(asking, event, actor, y)
                found.append(
                    asking.draft(form, event.kind, EVENTS, right, rivals, ticks_,
                                 [x, *mentions, *([y] if y else [])], x=x.text, c=clause)
                )  # fmt: skip
    return found


def _where(asking: Asking) -> list[Draft]:
    episode, style, found = asking.episode, asking.style, []
    options = (*QUARTERS, style.outside) if style.outside else QUARTERS
    last = episode.ticks - 1
    moments: list[tuple[str, str, list[Mention], int, tuple[int, int]]] = [
        ("where at the start", "", [], 0, (0, 1)),
        ("where at the end", "", [], last, (last - 1, last)),
    ]
    for number, clause, mentions in _clauses(asking):
        tick = episode.events[number].tick
        moments.append(("where after", clause, mentions, tick + 1, (tick, tick + 1)))
    for form, clause, mentions, tick, ticks in moments:
        for actor in range(len(episode.actors)):
            if actor in [m.actor for m in mentions]:
                continue  # "when the star vanishes" would say where the star is
            answer = episode.quarter(actor, tick) or style.outside
            if answer:
                x = asking.mention(actor)
                rivals = [option for option in options if option != answer]
                span = ticks if form == "where after" else asking.whole
                found.append(
                    asking.draft(form, answer, options, answer, rivals, span, [x, *mentions], x=x.text, c=clause)
                )
    return found


def _way(asking: Asking) -> list[Draft]:
    episode, nowhere, found = asking.episode, asking.style.nowhere, []
    options = (*MOVES, nowhere) if nowhere else tuple(MOVES)
    for actor in range(len(episode.actors)):
        moved = changes(episode, actor)
        answer = way_of(episode, actor, moved[0]) if len(moved) == 1 else ("" if moved else nowhere)
        if answer:
            tick = moved[0] if moved else asking.rng.choice(episode.events).tick
            x = asking.mention(actor)
            rivals = [option for option in options if option != answer]
            found.append(asking.draft("way", answer, options, answer, rivals, (tick, tick + 1), [x], x=x.text))
    return found


def _short_clause(asking: Asking, kind: str, actor: int, way: str) -> tuple[str, Mention]:
    """A clause of few words: who is pushed or swapped with is left open."""
    x = asking.mention(actor)
    if len(x.text.split()) > 3:
        x = asking.described(actor)
    verb = asking.style.verbs[kind].replace(" with {y}", " places").format(y="something", w=way)
    return f"{x.text} {verb}", x


def _order_rival(asking: Asking, kind: str, event: Event, spoken: Sequence[int]) -> str:
    """A clause of `kind` that does not describe `event` and does not contradict the question.

    Another event of the episode when there is one, else something that could have happened.
    """
    episode, rng = asking.episode, asking.rng
    same = [e for e in episode.events if e.kind == kind]
    if same:
        said = rng.choice(same)
        if kind != "move" or said.direction != way_of(episode, said.actor, event.tick):
            return _short_clause(asking, kind, said.actor, said.direction)[0]
    actors = range(len(episode.actors))
    fitting = [a for a in actors if is_present(episode, a, event.tick) != (kind == "appear") and a not in spoken]
    actor = rng.choice(fitting or [a for a in actors if a not in spoken] or list(actors))
    return _short_clause(asking, kind, actor, _wrong_way(asking, actor, event.tick))[0]


def _order(asking: Asking) -> list[Draft]:
    episode, found = asking.episode, []
    moments: list[tuple[str, str, list[Mention], int, tuple[int, int]]] = []
    if len(episode.events) > 1:
        moments += [("order first", "", [], 0, asking.whole)]
        moments += [("order last", "", [], len(episode.events) - 1, asking.whole)]
    for number, clause, mentions in _clauses(asking):
        for step, form in ((1, "order after"), (-1, "order before")):
            if 0 <= number + step < len(episode.events):
                ticks = sorted((episode.events[number].tick, episode.events[number + step].tick))
                moments.append((form, clause, mentions, number + step, (ticks[0], ticks[1] + 1)))
    for form, clause, mentions, number, ticks_ in moments:
        event, spoken = episode.events[number], [m.actor for m in mentions]
        if number in asking.script.told or set(spoken) & set(taking_part(event)):
            continue  # "right after the star vanishes" would tell what the star cannot do
        right, x = _short_clause(asking, event.kind, event.actor, event.direction)
        kinds = [kind for kind in asking.rng.sample(EVENTS, len(EVENTS)) if kind != event.kind]
        rivals = [_order_rival(asking, kind, event, spoken) for kind in kinds[: asking.style.options - 1]]
        found.append(
            asking.draft(form, event.kind, EVENTS, right, rivals, ticks_, [*mentions, x], actors=taking_part(event),
                         c=clause)
        )  # fmt: skip
    return found


def _facts(asking: Asking) -> list[tuple[str, int, int, str, tuple[int, int]]]:
    """What singles one actor out: (form, that actor, the other one or -1, way or quarter, ticks)."""
    episode = asking.episode
    found = []
    for number, event in enumerate(episode.events):
        ticks, alike = (event.tick, event.tick + 1), [e for e in episode.events if e.kind == event.kind]
        if event.kind in ("appear", "vanish") and len(alike) == 1:
            found.append((f"who {event.kind}", event.actor, -1, "", ticks))
        if event.kind != "swap" and len(episode.events) > 1:
            found.append(("who steps", event.actor, -1, _STEPS[number], asking.whole))
        if event.kind == "push":
            if len({e.actor for e in alike if e.other == event.other}) == 1:
                found.append(("who pushes", event.actor, event.other, "", ticks))
            if len({e.other for e in alike if e.actor == event.actor}) == 1:
                found.append(("who is pushed", event.other, event.actor, "", ticks))
        for a, b in (taking_part(event), taking_part(event)[::-1]) if event.kind == "swap" else ():
            if len({frozenset(taking_part(e)) for e in alike if b in taking_part(e)}) == 1:
                found.append(("who swaps", a, b, "", ticks))
    for way in MOVES:
        going = [
            (a, t) for a in range(len(episode.actors)) for t in changes(episode, a) if way_of(episode, a, t) == way
        ]
        if len({actor for actor, _ in going}) == 1:
            found.append(("who moves", going[0][0], -1, way, (going[0][1], going[0][1] + 1)))
    for form, tick in (("who starts", 0), ("who ends", episode.ticks - 1)):
        found += [(form, a, -1, episode.quarter(a, tick), asking.whole)
                  for a in range(len(episode.actors)) if is_present(episode, a, tick)]  # fmt: skip
    return [fact for fact in found if fact[0] in asking.style.texts]


def _rival_values(asking: Asking, attribute: str, actor: int, hidden: Sequence[str], shown: Sequence[str]) -> list[str]:
    """Values of the other actors first, then others; none that `hidden` or a held-out pair rules out."""
    right = getattr(asking.episode.actors[actor], attribute)
    there = [str(getattr(a, attribute)) for a in asking.episode.actors]
    values = [v for v in VALUES[attribute] if v != right and v not in hidden]
    if not asking.with_held_out:
        values = [v for v in values if not joins_held_out(v, shown)]
    asking.rng.shuffle(values)
    values.sort(key=lambda v: v not in there)
    return values[: asking.style.options - 1]


def _who(asking: Asking) -> list[Draft]:
    """Which object is it, by an attribute that the subtitles of the video never tell."""
    found = []
    for attribute in sorted(set(ASKABLE) - asking.script.said):
        for form, actor, other, word, ticks in _facts(asking):
            y = asking.mention(other) if other >= 0 else None
            hidden = tuple(y.kind.attributes.values()) if y else ()
            template = asking.rng.choice(asking.style.texts[form])
            right = str(getattr(asking.episode.actors[actor], attribute))
            rivals = _rival_values(asking, attribute, actor, hidden, ())
            if len(rivals) < asking.style.options - 1:
                continue
            shown = [right, *rivals] if "{a}" in template else [_noun(attribute, v) for v in (right, *rivals)]
            noun = {"colour": "color"}.get(attribute, attribute)
            found.append(
                asking.draft(
                    form, right, ASKABLE[attribute], shown[0], shown[1:], ticks, [y] if y else [], template, (actor,),
                    a=noun, y=y.text if y else "", w=word, q=word,
                )
            )  # fmt: skip
    return found


def _noun(attribute: str, value: str) -> str:
    return Kind(**{attribute: value}).the


def _looks(asking: Asking) -> list[Draft]:
    """Colour or shape of an object that only a subtitle points out."""
    found = []
    spoken = {**asking.script.watched, **asking.script.named}
    for attribute in sorted(set(ASKABLE) - asking.script.said):
        for actor, number in spoken.items():
            line = asking.script.lines[number]
            text = line.name or asking.watched_text(line)
            x = Mention(text, actor, number)
            right = str(getattr(asking.episode.actors[actor], attribute))
            rivals = _rival_values(asking, attribute, actor, (), list(line.kind.attributes.values()))
            if len(rivals) == asking.style.options - 1:
                noun = {"colour": "color"}.get(attribute, attribute)
                found.append(
                    asking.draft("looks", right, ASKABLE[attribute], right, rivals, asking.whole, [x], x=text, a=noun)
                )
    return found


_MAKERS: dict[str, tuple[Callable[[Asking], list[Draft]], float]] = {
    "doing": (_doing, 5), "where": (_where, 5), "way": (_way, 3), "who": (_who, 7), "looks": (_looks, 3),
    "order": (_order, 3),
}  # fmt: skip
_SLACK = 1.15  # how far an answer may run ahead of its share


class Questioner:
    """Asks about one episode after another and keeps forms and answers in balance."""

    def __init__(self, style: Style, rng: random.Random, with_held_out: bool) -> None:
        self.style, self.rng, self.with_held_out = style, rng, with_held_out
        self._balancer = Balancer()
        self._used: Counter[str] = Counter()
        self._forms: Counter[str] = Counter()
        self._answers: Counter[tuple[str, ...]] = Counter()

    def ask(self, episode: Episode, script: Script, number: int) -> list[Draft]:
        """`number` questions of different texts; RuntimeError when the episode does not carry as many."""
        asking = Asking(episode, script, self.style, self.rng, self.with_held_out)
        found: list[Draft] = []
        for is_strict in (True, *[False] * number):
            for name in sorted(_MAKERS, key=lambda n: (self._used[n] / _MAKERS[n][1], self.rng.random())):
                if len(found) == number:
                    return found
                texts = {draft.question for draft in found}
                drafts = [d for d in _MAKERS[name][0](asking) if d.question not in texts and _is_short(d)]
                draft = self._choose([d for d in drafts if not is_strict or self._is_due(d)])
                if draft is not None:
                    self._used[name] += 1
                    found.append(draft)
        if len(found) < number:
            raise RuntimeError(f"an episode carries {len(found)} questions, {number} are wanted: {episode}")
        return found

    def _is_due(self, draft: Draft) -> bool:
        for key in _keys(draft):
            share = self._answers[key] / len(draft.asked.options)
            if self._answers[(*key, draft.asked.answer)] > _SLACK * share + 1:
                return False
        return True

    def _choose(self, drafts: Sequence[Draft]) -> Draft | None:
        """The draft that evens out the answers of the form that was asked least."""
        if not drafts:
            return None
        form = min({d.asked.form for d in drafts}, key=lambda name: (self._forms[name], name))
        drafts = [draft for draft in drafts if draft.asked.form == form]
        asked = self._balancer.choose(self.rng, [draft.asked for draft in drafts])
        draft = next(d for d in drafts if d.asked is asked)
        self._forms[form] += 1
        for key in _keys(draft):
            self._answers[key] += 1
            self._answers[(*key, draft.asked.answer)] += 1
        return draft


def _keys(draft: Draft) -> list[tuple[str, ...]]:
    """Groups of questions inside which answers are held in balance: a form, and a form with or without subtitles."""
    asked = draft.asked
    group = asked.form, "-".join(asked.options)
    return [("form", *group), ("said", *group, "yes" if draft.lines else "no")]


def _is_short(draft: Draft) -> bool:
    options = (draft.right, *draft.rivals)
    is_brief = all(len(option.split()) <= MAX_OPTION_WORDS for option in options)
    return is_brief and len(draft.question.split()) <= MAX_QUESTION_WORDS and len(set(options)) == len(options)


def some_drafts(episode: Episode, script: Script, style: Style, rng: random.Random, number: int) -> list[Draft]:
    """At most `number` questions of different forms, in no balance and without held-out compositions."""
    asking = Asking(episode, script, style, rng, False)
    found = [draft for name in rng.sample(sorted(_MAKERS), number) for draft in _few(_MAKERS[name][0](asking), rng)]
    return [draft for draft in found if _is_short(draft)]


def _few(drafts: list[Draft], rng: random.Random) -> list[Draft]:
    return rng.sample(drafts, min(1, len(drafts)))
