"""The wording in which BLIP was given its texts: lower case, without most punctuation."""

from __future__ import annotations

import dataclasses
import re

from mtvl.types import Example

WORDINGS = ("as_written", "plain")
_LEFT_OUT = re.compile(r'[.!"()*#:;~]')


def plain_prose(text: str) -> str:
    """A caption or statement in lower case, a space in place of each mark but commas, question marks and hyphens.

    *Source:* BLIP's captions in pre-training and in all tasks on them, which also end after 30 to 40 words; here tokens are
    limited, not words.
    """
    return " ".join(_LEFT_OUT.sub(" ", text.lower()).split())


def plain_question(text: str) -> str:
    """The same of a question, where the marks leave no space. *Source:* BLIP on VQA, whose answers stay as they are."""
    return _LEFT_OUT.sub("", text.lower()).rstrip()


def plain(example: Example, *, is_prose: bool) -> Example:
    """`example` with its question, caption or statement plain, and where that is prose also what is to be written; prompts,
    subtitles and references stay."""
    reword = plain_prose if is_prose else plain_question
    segments = tuple(
        dataclasses.replace(s, text=reword(s.text)) if s.name == "question" else s for s in example.segments
    )
    targets = example.targets
    if is_prose:
        targets = tuple(dataclasses.replace(t, text=plain_prose(t.text)) for t in targets)
    return dataclasses.replace(example, segments=segments, targets=targets)
