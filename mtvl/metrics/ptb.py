"""A Penn-Treebank tokeniser for captions in plain Python, for machines without Java.

It reproduces what Stanford's PTBTokenizer 3.4.1 does with -lowerCase, fitted to that program's output on 36,601 real
captions, questions and statements (all equal) and on the same with random marks put in (999 of 1,000 equal). As there,
the rule with the longest match (its look-ahead counted) wins at each place, the first on a tie. Odd Unicode and rare
abbreviations may differ. `tools/check_metrics.py` says how often on a given set.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

# Tokens that caption scoring drops. The comparison comes after lower-casing, so the written form of "(" that reaches
# it is "-lrb-" and survives: brackets count as words in every published figure.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
PUNCTUATION |= {"-LRB-", "-RRB-", "-LCB-", "-RCB-"}

_SPLITS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "wanna": ("wan", "na"),
}

_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''"}
# Two in a row make one token, which is no punctuation mark to caption scoring.
_QUOTES = dict.fromkeys("\u2018\u201b\x91\u2039", "`") | dict.fromkeys("\u2019\u201a\x92\u203a", "'")
_QUOTES |= dict.fromkeys("\u201c\x93\u00ab", "``") | dict.fromkeys("\u201d\x94\u00bb", "''")
_CURRENCIES = {"€": "$", "\x80": "$", "£": "#", "¢": "cents"}

# Abbreviations that keep their period wherever they stand ...
_ABBREVIATIONS = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ala ariz calif colo conn ct
    dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo inc co cos corp ltd
    plc rt bancorp bhd assn univ intl sys tel est ext sq jr sr bros ed.d ph.d esq etc al seq bldg mr mrs ms dr drs
    prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt ste st ave
    pres lieut hon brig cmdr comdr pfc spc supt supts det mt ft adj adv asst assoc ens insp mlle mme msgr sfc invt
    elec natl mfg mtg dept blvd rd wm jos cie cf treas ph vs alex
"""
# ... those of American states that are words too need their capital ...
_CAPITAL_ABBREVIATIONS = ["Az", "Ark", "Del", "Ill", "La", "Mass", "Miss", "Ore", "Pa", "Tex", "Wash"]
# ... and these keep it before a number only.
_NUMBER_ABBREVIATIONS = "ca|figs?|prop|nos?|art|pp|op"
# A single letter with a period before one of these is the end of a sentence, not an initial.
_OPENERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once
    One Mr\\. Ms\\. Other Our She Since So Some Such That The Their Then There These They This We What When While
    Yet You
"""

_SPACE = r"[ \t\u00a0\u2000-\u200a\u3000]"
_MARKS = r"\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065e\u0670\u0900-\u0dff\u0e30-\u0e4e\u00ad\u200c\u200d"
_APOS = "['\u2019\x92]"
_APOS_ETC = "['\u2019\x92`\u2018\x91\u201b]"
_NUM = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_NO_NUMERALS = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u215e"  # \w holds them, the program's words do not
_ALNUM = rf"[^\W_{_NO_NUMERALS}]"
_LETTER = rf"(?:[^\W\d_{_NO_NUMERALS}]|[{_MARKS}])"
_LETTER_DIGIT = rf"(?:{_ALNUM}|[{_MARKS}])"
_WORD = rf"{_LETTER}{_LETTER_DIGIT}*(?:[.!?]{_LETTER}{_LETTER_DIGIT}*)*"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_AUX = rf"{_APOS}(?:m|s|d|re|ve|ll|em)"
_HALF_WORD = rf"(?:[dol]{_APOS_ETC}{_ALNUM})?(?:{_ALNUM}+|{_NUM})"
_GAP = r"[- \u00a0]"
_PHONE = (
    rf"(?:\(\d{{2,3}}\)[ \u00a0]?|\+{{0,2}}(?:\d{{2,4}}{_GAP}){{1,2}})\d{{3,4}}{_GAP}?\d{{3,5}}"
    r"|\+{0,2}\d{2,4}(?:\.\d{2,4})?\.\d{3,4}\.\d{3,5}"
)
_EYES, _NOSE, _MOUTH, _CLOSED_EYE = "[:;=]", "[-o'*]", r"[]()[{@|\\DPO]", "[-=~^<>x']"
_URL_STOP = r' \t\r\n\f"`<>|(){}'


class _Rule(NamedTuple):
    pattern: re.Pattern[str]  # the group "token" is what is consumed; text after it is look-ahead
    emit: Callable[[str], tuple[str, ...]]


def _as_it_is(token: str) -> tuple[str, ...]:
    return (token,)


def _plain_apostrophes(token: str) -> tuple[str, ...]:
    return (re.sub("[\u2019\x92]", "'", re.sub("[\u2018\x91\u201b]", "`", token)),)


def _joined(token: str) -> tuple[str, ...]:
    # A token that spans a space carries a no-break space, so that splitting at " " keeps it whole.
    return (re.sub(_SPACE, "\u00a0", token),)


def _bracketed(token: str) -> tuple[str, ...]:
    return _joined("".join(_BRACKETS.get(c, c) if c in "()" else c for c in token))


def _halves(token: str) -> tuple[str, ...]:
    return _SPLITS[token.lower()]


def _poetic(token: str) -> tuple[str, ...]:
    return ("'t", token[2:])


def _word(token: str) -> tuple[str, ...]:
    return (token.replace("\u00ad", ""),)


def _rule(token: str, emit: Callable[[str], tuple[str, ...]] = _as_it_is, then: str = "", case: bool = False) -> _Rule:
    return _Rule(re.compile(f"(?P<token>{token}){then}", 0 if case else re.IGNORECASE), emit)


def _mapped(token: str, table: dict[str, str]) -> _Rule:
    return _rule(token, lambda found: (table[found.lower()],))


_ABBREVIATION = "|".join(re.escape(word) for word in sorted(_ABBREVIATIONS.split(), key=len, reverse=True))
_OPENER = "|".join(_OPENERS.split())
_NOT_LETTER = r"(?:[^A-Za-z]|$)"
_RULES: tuple[_Rule, ...] = (
    _rule("c\\+\\+|c#"),
    _rule("|".join(_SPLITS), _halves),
    _rule(rf"{_APOS}t(?:is|was)", _poetic),
    _rule(r"</?[a-z][a-z0-9:.-]*(?: +[a-z][a-z0-9_:.-]*(?:=(?:\"[^\"<>]*\"|'[^'<>]*'|[a-z0-9_]+))?)* */?>", _joined),
    _rule(_WORD, _word, then=_AUX),
    _rule(_AUX, _plain_apostrophes, then=_NOT_LETTER),
    _rule(rf"{_APOS}\d\d", then=r"(?:\s|$)"),
    _rule(rf"{_APOS}n{_APOS}?|[ldj]{_APOS}|(?:dunkin|somethin|ol){_APOS}"),
    _rule(
        rf"{_APOS}till?|{_APOS}cause|{_APOS}[2-9]0s|cont'd|nor'easter|c'mon|n?e'er|s'mores|ev'ry|li'l|nat'l|cap'n",
    ),
    _rule(rf"[A-HJ-XZn]{_APOS_ETC}{_LETTER}{{2,}}", _plain_apostrophes, case=True),
    _rule(rf"{_LETTER}+[aeiouyAEIOUY]{_APOS_ETC}[aeiouA-Z]{_LETTER}*", _plain_apostrophes, case=True),
    _rule(rf"y{_APOS}", _plain_apostrophes, then=_LETTER),
    _rule(rf"https?://[^{_URL_STOP}]+[^{_URL_STOP}.!?,;:&'-]"),
    _rule(
        rf"(?:www\.(?:[^{_URL_STOP}.!?,]+\.)+[a-z]{{2,4}}|(?:[^{_URL_STOP}.!?,:/$]+\.)+(?:com|net|org|edu))"
        rf"(?:/[^{_URL_STOP}]+[^{_URL_STOP}.!?,;:&'-])?",
        then=r"(?=[^A-Za-z]|$)",
    ),
    _rule(rf"[a-z0-9][^{_URL_STOP}]*@(?:[^{_URL_STOP}.]+\.)*[^{_URL_STOP}.]+"),
    _rule(rf"@[a-z_][a-z_0-9]*|#{_LETTER}+"),
    _rule(r"[a-z]*[a-mo-z]", then=rf"n{_APOS_ETC}t"),
    _rule(rf"n{_APOS_ETC}ts?", _plain_apostrophes),
    _rule(rf"(?:{_WORD}|{_ALNUM}+(?:[-_]{_ALNUM}+)*|[a-z]+&[a-z]+)\.", _word, then="[,;:]"),
    _rule(_WORD, _word),
    _rule(r"(?:\d{1,4}[- \u00a0])?\d{1,4}\\?/\d{1,4}", _joined),
    _rule(r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    _rule(rf"[-+]?{_NUM}"),
    _rule(_PHONE, _bracketed),
    _rule(rf"{_HALF_WORD}(?:-{_HALF_WORD})*", _plain_apostrophes),
    _rule(r"[a-z0-9]+(?:-[a-z]+){0,2}(?:\\?/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}"),
    _rule(rf"{_ALNUM}(?:{_ALNUM}|[.,])*(?:[-_](?:{_ALNUM}+|{_ACRONYM}\.))+"),
    _rule(r"[A-Z]+(?:[+&][A-Z]+)+", case=True),
    _rule("-(?:rrb|lrb|rcb|lcb|rsb|lsb)-"),
    _rule(rf"(?:{_ABBREVIATION})\."),
    _rule(rf"(?:{'|'.join(f'{w}|{w.upper()}' for w in _CAPITAL_ABBREVIATIONS)}|ppty|[Pp]ty|Ppty)\.", case=True),
    _rule(rf"(?:{_NUMBER_ABBREVIATIONS})\.", then=rf"{_SPACE}?\d"),
    _rule(r"[A-Za-z]", then=rf"\.{_SPACE}+(?:{_OPENER}|{_OPENER.upper()}){_SPACE}", case=True),
    _rule(r"[a-z]\."),
    _rule(rf"{_ACRONYM}\."),
    _rule(f"[<>]?{_EYES}{_NOSE}?{_MOUTH}", _bracketed, then=_NOT_LETTER),
    _rule(rf"{_CLOSED_EYE}_{_CLOSED_EYE}"),
    _mapped("|".join(_ENTITIES), _ENTITIES),
    _mapped(r"[][(){}]", _BRACKETS),
    _mapped("[¼½¾⅓⅔]", _FRACTIONS),
    _mapped("[€\x80£¢]", _CURRENCIES),
    _rule(r"[A-Z]*\$", case=True),
    _rule(r"[?!]+"),
    _rule(r"\.\.\.+|[\u0085\u2026]", lambda _: ("...",)),
    _rule(r"-{2,}|[\u2013-\u2015\x96\x97]", lambda _: ("--",)),
    _rule(r"\*+|_+|@+|#+|<<|>>"),
    # Opens a quotation: the look-ahead keeps a following 'n or 's from being taken for an auxiliary.
    _rule("'", lambda _: ("`",), then="[A-Za-z][^ \\t\\u00a0]"),
    _rule(_AUX, _plain_apostrophes),
    _rule("''|``|[\"`']", lambda _: ("'",)),
    _rule(f"[{''.join(_QUOTES)}]{{1,2}}", lambda found: ("".join(map(_QUOTES.__getitem__, found)),)),
    _rule("\\S"),
)

_FAST_WORD = re.compile(r"[A-Za-z]+(?=\s|$)")
_WHITE = re.compile(r"\s+")
# The program deletes what it has no rule for; most of it lies outside the Basic Multilingual Plane (emoji).
_DELETED = re.compile("[\U00010000-\U0010ffff\x00-\x08\x0e-\x1f\u200b\u2010\u2011\ufeff\ufffd\ue000-\uf8ff]")


def _next(text: str, position: int) -> tuple[int, tuple[str, ...]]:
    best, consumed = -1, 0
    emit: Callable[[str], tuple[str, ...]] = _as_it_is
    for pattern, candidate in _RULES:
        match = pattern.match(text, position)
        if match is not None and match.end() > best:
            best, consumed, emit = match.end(), match.end("token"), candidate
    return consumed, emit(text[position:consumed])


def ptb_tokens(text: str) -> list[str]:
    """Lower-cased Penn-Treebank tokens of one caption, punctuation included."""
    tokens: list[str] = []
    position = 0
    text = _DELETED.sub(" ", text)
    while position < len(text):
        white = _WHITE.match(text, position)
        if white is not None:
            position = white.end()
            continue
        word = _FAST_WORD.match(text, position)  # nine words of ten; only the splits can match more than the letters
        if word is not None and word.group().lower() not in _SPLITS:
            tokens.append(word.group())
            position = word.end()
            continue
        position, found = _next(text, position)
        tokens.extend(found)
    return [token.lower() for token in tokens]


def drop_punctuation(line: str) -> str:
    """`line` of tokens separated by single spaces without the tokens that caption scoring ignores."""
    return " ".join(token for token in line.split(" ") if token and token not in PUNCTUATION)


def python_ptb(text: str) -> str:
    """One caption as caption scoring wants it: lower-cased tokens without punctuation, joined by single spaces."""
    return drop_punctuation(" ".join(ptb_tokens(text)))
