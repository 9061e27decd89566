"""Plain text for pretraining a language model: sentences as the benchmarks word them, without any picture.

A public language model has read questions and captions long before it is adapted. The tiny one gets the same: sentences
about scenes of its own split, of which it sees no picture, and no question together with its answer. Held-out
compositions are never mentioned.
"""

from __future__ import annotations

import random

from mtvl.data.miniworld.captions import captions
from mtvl.data.miniworld.gqa_forms import GQA_FORMS
from mtvl.data.miniworld.language import MASK
from mtvl.data.miniworld.questions import VQA_FORMS
from mtvl.data.miniworld.scene import Scene
from mtvl.data.miniworld.statements import random_statement

_QUESTIONS, _STATEMENTS = 6, 4


def sentences(scene: Scene, rng: random.Random) -> list[str]:
    """About fifteen sentences: captions, questions without their answers, statements that may be false."""
    found = captions(scene, rng)
    for forms in (VQA_FORMS, GQA_FORMS):
        for name in rng.sample(list(forms), _QUESTIONS // 2):
            asked = forms[name][0](scene, rng, False)
            if asked:
                found.append(rng.choice(asked).text)
    found += [random_statement(rng, False).text for _ in range(_STATEMENTS)]
    return found


def infill(text: str, rng: random.Random, share: float = 0.35) -> tuple[str, str]:
    """BART's text infilling: spans of about `share` of the words become one `<mask>` each; (damaged, whole) text.

    *Source:* BART, section 2.2 (span lengths there are Poisson(3); sentences here are short: 1 to 3 words).
    """
    words, damaged, index, budget = text.split(), [], 0, max(1, round(share * len(text.split())))
    while index < len(words):
        if budget and rng.random() < share:
            length = min(rng.choice((1, 1, 2, 3)), budget, len(words) - index)
            damaged.append(MASK)
            index, budget = index + length, budget - length
            if index < len(words):  # two masks in a row would be one
                damaged.append(words[index])
                index += 1
        else:
            damaged.append(words[index])
            index += 1
    return " ".join(damaged), text
