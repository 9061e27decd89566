"""A Penn-Treebank tokeniser for captions in plain Python, for machines without Java.

It follows the conventions of the Penn Treebank (clitics are split off, abbreviations keep their period, brackets get
names) and, where these leave room, what the tokeniser of published caption scores was seen to print. A line is cut from
left to right: `_PIECES` lists the kinds of pieces, and the first that fits is taken. What caption scoring keeps was equal
on 56,092 real captions, questions and statements; telephone numbers, rare smileys, abbreviations and web addresses may
differ. `tools/check_metrics.py` says how often on a given set.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# Tokens that caption scoring drops. The comparison comes after lower-casing, so the written form of "(" that reaches
# it is "-lrb-" and survives: brackets count as words in every published figure.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
PUNCTUATION |= {"-LRB-", "-RRB-", "-LCB-", "-RCB-"}

# Two words written as one.
_FUSED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}

# Everyday abbreviations that keep their period wherever they stand ...
_ABBREVIATIONS = {
    "people": "mr mrs ms dr drs prof jr sr messrs mme mlle wm alex",
    "offices": "gov sen rep pres rev hon gen col capt lt sgt maj cpl supt asst atty",
    "places": "st ste ave blvd rd rt ct mt ft bldg sq",
    "firms": "co cos corp inc ltd bros dept univ assn assoc intl natl mfg",
    "calendar": "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri",
    "states": "ala ariz calif colo conn fla ga ind kan ky md mich minn mo mont neb nev okla penn tenn va vt wis wyo",
    "writing": "etc vs al cf ext tel est adj adv ph.d",
}
# ... these need their capital, since they are words (or parts of words) too ...
_CAPITALISED = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
# ... and these want a number behind them.
_NUMBERED = "no nos fig figs ca pp art"
# A letter with a period is an initial ("J. Smith", "vitamin c."), unless one of these begins the next sentence.
_SENTENCE_STARTS = (
    "A After An As At But He Her Here However If In It Many More Now Once One Other Our She Since So Some That The Their "
    "Then There These They This We What When While You"
)

# Contractions and clippings with an apostrophe that stay whole.
_KEPT_WHOLE = ("c'mon", "s'mores", "li'l", "'til", "'till", "'cause", "'em", "ol'", "dunkin'", "somethin'")

_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_RENAMED = {
    **_BRACKETS,
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "⅓": "1/3",
    "⅔": "2/3",
    "€": "$",
    "£": "#",
    "¢": "cents",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "''",
    **dict.fromkeys('"`', "'") | dict.fromkeys("‘’‛‚‹›", "'") | dict.fromkeys("“”«»", "''"),
}

_APOSTROPHE = "['’]"
_SCRIPT = "²³¹¼-¾⁰-₉⅐-⅞"  # raised and lowered digits and fractions: \w holds them, words do not
_SIGN = rf"(?:[^\W_{_SCRIPT}]|[\u0300-\u036f])"  # a letter or digit, or an accent on the one before
_LETTER = rf"[^\W\d_{_SCRIPT}]"
_WORD = rf"{_LETTER}{_SIGN}*"
_AMOUNT = r"\d*(?:[.,:]\d+)+"
_UNIT = rf"(?:{_AMOUNT}|{_SIGN}+)"
_COMPOUND = rf"{_UNIT}(?:[-_]{_UNIT})*"
_SLASHABLE = rf"{_SIGN}+(?:-{_LETTER}+)*"
_NOT = rf"n{_APOSTROPHE}t(?!{_LETTER})"
_HOST = r"(?:[a-z0-9-]+\.)+"
_PATH = r"(?:/[^\s\"<>|(){}]*[a-z0-9/=])?"


def _any(words: str) -> str:
    # Longest first: an alternation takes the first word that fits.
    return "|".join(sorted(map(re.escape, words.split()), key=len, reverse=True))


def _capitals(words: str) -> str:
    return f"(?-i:{_any(words)}|{_any(words.upper())})"


_PIECES = {
    # Written things of the network, and mark-up.
    "link": rf"https?://{_HOST}[a-z]+{_PATH}|www\.{_HOST}[a-z]+{_PATH}|{_HOST}(?:com|org|net|edu)(?![a-z]){_PATH}",
    "address": r"[a-z0-9][\w.+-]*@[\w-]+(?:\.[\w-]+)*",
    "handle": rf"@[a-z_]\w*|#{_LETTER}+",
    "file": r"[a-z0-9]+\.(?:jpe?g|png|gif|bmp|txt|pdf|html?|zip)(?![a-z0-9])",
    "tag": r"</?[a-z][^<>\s]*>",
    "smiley": rf"[:;=]-?(?:[()]|(?-i:[DP]))(?!{_LETTER})",
    # What a period or an apostrophe belongs to.
    "fused": rf"(?:{_any(' '.join(_FUSED))})(?!{_SIGN})",
    "whole": rf"(?:{'|'.join(_KEPT_WHOLE)})(?!{_LETTER})".replace("'", _APOSTROPHE),
    "negated": rf"[a-z]+?(?={_NOT})",
    "not": _NOT,
    "clitic": rf"{_APOSTROPHE}(?:s|m|d|re|ve|ll)(?!{_LETTER})",
    "and": rf"{_APOSTROPHE}n(?:{_APOSTROPHE}|(?!{_LETTER}))",
    "years": rf"{_APOSTROPHE}\d0s(?!{_SIGN})|{_APOSTROPHE}\d\d(?!\S)",
    "you": rf"y{_APOSTROPHE}(?={_LETTER})",
    "prefixed": rf"(?-i:[A-Zdlno])(?<![IY]){_APOSTROPHE}{_LETTER}{{2,}}",  # O'Neil, K'nex, o'clock, l'eau
    "vowels": rf"{_LETTER}+[aeiouy]{_APOSTROPHE}[aeiou]{_LETTER}*",
    "initial": rf"[a-z](?=\.\s+{_capitals(_SENTENCE_STARTS)}(?!\S))",
    "initials": r"[a-z](?:\.[a-z])*\.(?![a-z])",
    "abbreviation": rf"(?:{_any(' '.join(_ABBREVIATIONS.values()))}|{_capitals(_CAPITALISED)})\.(?![a-z])",
    "numbered": rf"(?:{_any(_NUMBERED)})\.(?=\s?\d)",
    "stopped": rf"(?:{_COMPOUND}|{_WORD}(?:\.{_WORD})+)\.(?=[,;:])",
    # Numbers and words with what glues them.
    "mixed": r"\d+[- ]\d+/\d+(?![/\d])",
    "alphabet": r"(?-i:[A-Z]+(?:[&+][A-Z]+)+)|c\+\+|c#",
    "slashed": rf"{_SLASHABLE}(?:/{_SLASHABLE}){{1,2}}",
    "hyphened": rf"{_UNIT}(?:[-_]{_UNIT})+",
    "dotted": rf"{_WORD}(?:[.!?]{_WORD})+",
    "amount": rf"[-+]?(?:{_AMOUNT}|\d+(?!{_SIGN}))",
    "currency": r"(?-i:[A-Z]*)\$",
    "word": rf"{_SIGN}+",
    # Marks: some in a row are one token.
    "renamed": r"&(?:amp|lt|gt|quot);|[][(){}½¼¾⅓⅔€£¢\"`‘’‛‚‹›“”«»]",
    "dots": r"\.{3,}|…",
    "dashes": r"-{2,}|[–—―]",
    "repeated": r"[?!]+|\*+|_+|@+|#+|<<|>>|''",
    "mark": r"\S",
}
_SCANNER = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _PIECES.items()), re.IGNORECASE)

# A piece is one token as it stands unless it is named here.
_EMIT: dict[str, Callable[[str], tuple[str, ...]]] = {
    "fused": lambda piece: _FUSED[piece.lower()],
    # Elsewhere a curly apostrophe stays curly.
    "not": lambda piece: (piece.replace("’", "'"),),
    "clitic": lambda piece: (piece.replace("’", "'"),),
    # A token that spans a space carries a no-break space, so that splitting at " " keeps it whole.
    "mixed": lambda piece: (piece.replace(" ", "\u00a0"),),
    "smiley": lambda piece: (piece[:-1] + _BRACKETS.get(piece[-1], piece[-1]),),
    "renamed": lambda piece: (_RENAMED[piece.lower()],),
    "dots": lambda _: ("...",),
    "dashes": lambda _: ("--",),
}

_PLAIN = re.compile(r"[A-Za-z]+(?!\S)")
# Signs that the tokeniser of published scores drops: emoji and everything else beyond 16 bits, controls, private ones, signs without width.
_DELETED = re.compile("[\U00010000-\U0010ffff\x00-\x08\x0e-\x1f\u200b\u2010\u2011\ufeff\ufffd\ue000-\uf8ff]|&nbsp;")


def ptb_tokens(text: str) -> list[str]:
    """Lower-cased Penn-Treebank tokens of one caption, punctuation included."""
    text = _DELETED.sub(" ", text).replace("\u00ad", "")  # the soft hyphen joins what it parts
    tokens: list[str] = []
    position, end = 0, len(text)
    while position < end:
        if text[position].isspace():
            position += 1
            continue
        plain = _PLAIN.match(text, position)  # nine words of ten
        if plain is not None and plain.group().lower() not in _FUSED:
            tokens.append(plain.group())
            position = plain.end()
            continue
        found = _SCANNER.match(text, position)
        assert found is not None and found.lastgroup is not None  # "mark" takes what nothing else does
        emit = _EMIT.get(found.lastgroup)
        tokens.extend(emit(found.group()) if emit else (found.group(),))
        position = found.end()
    return [token.lower() for token in tokens]


def drop_punctuation(line: str) -> str:
    """`line` of tokens separated by single spaces without the tokens that caption scoring ignores."""
    return " ".join(token for token in line.split(" ") if token and token not in PUNCTUATION)


def python_ptb(text: str) -> str:
    """One caption as caption scoring wants it: lower-cased tokens without punctuation, joined by single spaces."""
    return drop_punctuation(" ".join(ptb_tokens(text)))
