"""Caption metrics: BLEU-1..4, METEOR, ROUGE_L and CIDEr with pycocoevalcap's scorers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mtvl.errors import ConfigError, DataError, MtvlError, near_names
from mtvl.metrics.java import JavaError, Meteor, find_java, run_meteor, run_ptb
from mtvl.metrics.ptb import drop_punctuation, python_ptb
from mtvl.metrics.result import Result, check_ids

TOKENIZERS = ("auto", "ptb", "python")

Texts = Mapping[str, str]
References = Mapping[str, Sequence[str]]


def replace_non_ascii(text: str) -> str:
    """Every non-ASCII character becomes a space, as VALUE's evaluator does before it tokenises."""
    return "".join(character if ord(character) < 128 else " " for character in text)


def _ptb_java(texts: Sequence[str]) -> list[str]:
    return [drop_punctuation(line) for line in run_ptb(texts)]


def tokenise(texts: Sequence[str], tokenizer: str = "auto") -> tuple[list[str], str]:
    """Caption text ready for scoring, and the label of the tokeniser that did it: `ptb` (Java) or `python`.

    `auto` takes Java's where a Java runs and says so with a warning when it has to fall back after a failure; `ptb`
    raises JavaError without it; `python` never starts a process. Raises ConfigError for another name.
    """
    if tokenizer not in TOKENIZERS:
        raise ConfigError(f"unknown caption tokenizer {tokenizer!r}; {near_names(tokenizer, TOKENIZERS)}")
    if tokenizer == "ptb" or (tokenizer == "auto" and find_java() is not None):
        try:
            return _ptb_java(texts), "ptb"
        except JavaError as error:
            if tokenizer == "ptb":
                raise
            warnings.warn(f"captions are tokenised in Python, without METEOR: {error}", stacklevel=2)
    return [python_ptb(text) for text in texts], "python"


def score_tokenised(candidates: Texts, references: References, *, meteor: bool | Meteor = True) -> Result:
    """Score texts that are tokenised already (words separated by single spaces).

    Order of ids is that of `candidates`. CIDEr is CIDEr-D with document frequencies of the references at hand, so a
    single item scores 0. `meteor` may be a running METEOR, which is then left running. `details["per_item_metrics"]` holds every metric per id. Everything is x 100.

    Raises DataError when ids differ or an id has no reference, JavaError when METEOR is wanted and cannot run.
    *Source:* pycocoevalcap 1.2 (SPICE left out: it downloads 384 MB when it starts).
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu  # type: ignore[import-untyped]
        from pycocoevalcap.cider.cider import Cider  # type: ignore[import-untyped]
        from pycocoevalcap.rouge.rouge import Rouge  # type: ignore[import-untyped]
    except ImportError as error:
        raise MtvlError(
            f"caption metrics expect the package pycocoevalcap; pip install pycocoevalcap ({error})"
        ) from error
    check_ids(candidates.keys(), references.keys(), "captions")
    uids = list(candidates)
    without = [uid for uid in uids if not any(text.strip() for text in references[uid])]
    if without:
        raise DataError(
            f"captions: expected at least one reference with a word for every id, found none for {len(without)} "
            f"(first: {without[0]})"
        )
    # The scorers check for plain lists, and for the same keys in the same order.
    truths = {uid: list(references[uid]) for uid in uids}
    guesses = {uid: [candidates[uid]] for uid in uids}
    bleu, bleu_items = Bleu(4).compute_score(truths, guesses, verbose=0)
    found: dict[str, tuple[float, Sequence[float]]] = {
        f"Bleu_{n}": (total, items) for n, (total, items) in enumerate(zip(bleu, bleu_items, strict=True), start=1)
    }
    if meteor:
        run = meteor.score if isinstance(meteor, Meteor) else run_meteor
        total, by_uid = run(candidates, references)
        found["METEOR"] = total, [by_uid[uid] for uid in uids]
    found["ROUGE_L"] = Rouge().compute_score(truths, guesses)
    found["CIDEr"] = Cider().compute_score(truths, guesses)
    per_item = {
        name: {uid: 100 * float(value) for uid, value in zip(uids, items, strict=True)}
        for name, (_, items) in found.items()
    }
    metrics = {name: 100 * float(total) for name, (total, _) in found.items()}
    return Result("CIDEr", metrics, per_item["CIDEr"], {"per_item_metrics": per_item})


def _score_with_meteor_if_possible(candidates: Texts, references: References, required: bool) -> tuple[Result, str]:
    try:
        return score_tokenised(candidates, references, meteor=True), "meteor-1.5"
    except JavaError as error:
        if required:
            raise
        warnings.warn(f"METEOR is left out: {error}", stacklevel=3)
        return score_tokenised(candidates, references, meteor=False), "left out (failed)"


def score_captions(
    predictions: Texts,
    references: References,
    *,
    tokenizer: str = "auto",
    meteor: bool = True,
    ascii_only: bool = False,
) -> Result:
    """BLEU-1..4, METEOR, ROUGE_L and CIDEr (x 100) of one caption per id against any number of references.

    `tokenizer` is `auto`, `ptb` or `python` (see `tokenise`); METEOR is a Java program, so without a Java, and with
    `tokenizer="python"`, it is left out. `ascii_only` is VALUE's rule. The result says what was done:
    `details["tokenizer"]`, `details["meteor"]`, `details["tokenised"]` {id: {"candidate", "references"}},
    `details["per_item_metrics"]` {metric: {id: score}}; `per_item` is CIDEr.

    Raises DataError when ids differ or an id has no reference; JavaError only with `tokenizer="ptb"`.
    """
    check_ids(predictions.keys(), references.keys(), "captions")
    # As upstream: references and candidates apart, in the order of the references. The PTB tokeniser looks across
    # line ends (a period before "A ..." on the next line), so another order may change a token.
    uids = list(references)
    policy = replace_non_ascii if ascii_only else str
    lines, label = tokenise([policy(text) for uid in uids for text in references[uid]], tokenizer)
    rest = iter(lines)
    truths = {uid: [next(rest) for _ in references[uid]] for uid in uids}
    lines, label = tokenise([policy(predictions[uid]) for uid in uids], label)
    candidates = dict(zip(uids, lines, strict=True))
    if meteor and label == "ptb":
        result, meteor_label = _score_with_meteor_if_possible(candidates, truths, required=tokenizer == "ptb")
    else:
        result = score_tokenised(candidates, truths, meteor=False)
        meteor_label = "left out (no Java)" if meteor else "left out (not asked for)"
    details: dict[str, Any] = {
        **result.details,
        "tokenizer": label,
        "meteor": meteor_label,
        "tokenised": {uid: {"candidate": candidates[uid], "references": truths[uid]} for uid in uids},
    }
    return Result(result.primary, result.metrics, result.per_item, details)
