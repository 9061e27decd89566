"""VQA v2 accuracy in the three variants that circulate, and the soft targets that fit it."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mtvl.errors import ConfigError, DataError, near_names
from mtvl.metrics.result import Result, check_ids, mean

VARIANTS = ("official", "official_before_2021", "always_normalised")

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The official pattern means to keep decimals, but its look-behind is malformed: only a digit *after* saves a period.
_PERIOD = re.compile(r"\.(?!\d)")
# The official script passes re.UNICODE (= 32) as the count of re.sub, so only that many periods go.
_MAX_PERIODS = 32
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(n)
    for n, word in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], start=1)
}

# Right-hand sides of the official contraction table. The left-hand sides are these words with one apostrophe lost.
# Words that the table leaves alone (well, were, shell, hell, ill, its ...) are missing on purpose; so are its
# capitalised keys (Im, Ive, Id've), which cannot match lower-cased text.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've 'ow's'at you'd you'd've you'll
    you're you've
"""


def _contractions() -> dict[str, str]:
    table = {}
    for word in _CONTRACTED.split():
        for position, character in enumerate(word):
            if character == "'":
                table[word[:position] + word[position + 1 :]] = word
    return table | {"somebody'd": "somebodyd"}  # written backwards in the official table


_CONTRACTIONS = _contractions()


def strip_answer(text: str) -> str:
    """Line ends and tabs to spaces, outer white space off: what the variants do to a prediction first."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise_punctuation(text: str) -> str:
    """First official step: punctuation and periods.

    A mark is deleted everywhere when it touches a space anywhere or when the text holds digit,digit; otherwise it
    becomes a space. Both conditions look at the text as it was given.

    *Source:* GT-Vision-Lab/VQA, vqaEval.processPunctuation (quirks kept).
    """
    has_comma_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if touches_space or has_comma_number else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


def normalise_words(text: str) -> str:
    """Second official step: lower case, number words to digits, articles off, contractions mended.

    *Source:* GT-Vision-Lab/VQA, vqaEval.processDigitArticle.
    """
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@functools.lru_cache(maxsize=2**17)
def normalise(text: str) -> str:
    """Both official steps in their order; the empty string when nothing but articles and marks was there."""
    return normalise_words(normalise_punctuation(text))


def soft_targets(answers: Sequence[str]) -> dict[str, float]:
    """Training targets of ten raw answers: {normalised text: min(1, 0.3 n)} for n annotators, commonest first.

    min(1, 0.3 n) is what the official leave-one-out accuracy gives to an answer that n of ten annotators gave. An
    answer of which normalisation leaves nothing (``"a"``) keeps its stripped text, because that is what scores.

    Raises DataError when there are no answers.
    *Source:* the official evaluator at n = 0..10; the table of VL-T5 and VL-Adapter.
    """
    if not answers:
        raise DataError("soft targets: expected raw answers of one question, found none; check the annotation row")
    # 0.3 * 3 is 0.8999...: three tenths as a quotient keeps the weights that are written in the papers.
    return {text: min(1.0, 3 * n / 10) for text, n in _counted(answers)}


def answer_shares(answers: Sequence[str]) -> dict[str, float]:
    """{normalised text: share of the annotators who gave it}, commonest first; {} without answers. *Source:* BLIP."""
    return {text: n / len(answers) for text, n in _counted(answers)}


def _counted(answers: Sequence[str]) -> list[tuple[str, int]]:
    """Normalised texts (stripped ones where nothing is left) and how many gave them, commonest first."""
    counts: Counter[str] = Counter()
    text_of: dict[str, str] = {}
    for answer in answers:
        stripped = strip_answer(answer)
        key = normalise(stripped)
        text_of.setdefault(key, key or stripped)
        counts[key] += 1
    return [(text_of[key], n) for key, n in counts.most_common()]


def _sides(prediction: str, answers: Sequence[str], variant: str) -> tuple[str, list[str]]:
    prediction = strip_answer(prediction)
    if variant == "official_before_2021":  # this one leaves outer white space on the answers
        disagree = len(set(answers)) > 1
        return normalise(prediction), [normalise_punctuation(a) for a in answers] if disagree else list(answers)
    stripped = [strip_answer(answer) for answer in answers]
    if variant == "always_normalised" or len(set(stripped)) > 1:
        return normalise(prediction), [normalise(answer) for answer in stripped]
    return prediction, stripped


def check_variant(variant: str) -> None:
    """Raise ConfigError for a variant that is none of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ConfigError(f"unknown variant of VQA accuracy {variant!r}; {near_names(variant, VARIANTS)}")


def question_accuracy(prediction: str, answers: Sequence[str], variant: str = "official") -> float:
    """Accuracy in [0, 1] of one prediction against the raw answers: mean over annotators of min(1, others / 3).

    `official` normalises both sides only when the raw answers differ; `official_before_2021` (LAVIS, VL-T5,
    VL-Adapter) always normalises the prediction and at most the punctuation of the answers; `always_normalised`
    (lmms-eval) normalises both sides always. "Others" leaves one annotator out by position, which is what the
    official dictionary comparison does for files with an `answer_id` each.

    *Source:* GT-Vision-Lab/VQA, vqaEval.evaluate.
    """
    check_variant(variant)
    if not answers:
        raise DataError("VQA accuracy: expected raw answers of one question, found none; test splits have none")
    text, truths = _sides(prediction, answers, variant)
    matches = [truth == text for truth in truths]
    # In the official order of operations: the figures are published rounded, and a tie turns on the last bit.
    return mean([min(1.0, float(sum(matches) - match) / 3) for match in matches])


def answer_texts(reference: Mapping[str, Any]) -> list[str]:
    """The raw answers of an official annotation: a list of strings or of {"answer": string}."""
    return [a["answer"] if isinstance(a, Mapping) else a for a in reference["answers"]]


def _percent_by(
    field: str, accuracies: Mapping[str, float], references: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for uid, accuracy in accuracies.items():
        if references[uid].get(field) is not None:
            groups.setdefault(str(references[uid][field]), []).append(accuracy)
    return {name: 100 * float(sum(values)) / len(values) for name, values in groups.items()}


def score_vqa(
    predictions: Mapping[str, str], references: Mapping[str, Mapping[str, Any]], variant: str = "official"
) -> Result:
    """VQA accuracy in percent over all questions, per question type, per answer type and per question.

    `references` maps each question id to its official annotation: `answers`, and where known `question_type` and
    `answer_type`. `details` holds `variant`, `per_question_type` and `per_answer_type`. Raises DataError unless the
    predicted ids are exactly those of the references, ConfigError for an unknown variant.
    """
    check_variant(variant)
    check_ids(predictions.keys(), references.keys(), "VQA")
    accuracies = {
        uid: question_accuracy(predictions[uid], answer_texts(reference), variant)
        for uid, reference in references.items()
    }
    overall = 100 * float(sum(accuracies.values())) / len(accuracies)
    details: dict[str, Any] = {
        "variant": variant,
        "per_question_type": _percent_by("question_type", accuracies, references),
        "per_answer_type": _percent_by("answer_type", accuracies, references),
    }
    metrics = {"accuracy": overall} | {f"accuracy/{k}": v for k, v in details["per_answer_type"].items()}
    return Result("accuracy", metrics, {uid: 100 * a for uid, a in accuracies.items()}, details)
