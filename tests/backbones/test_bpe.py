"""Byte-pair encoding: the merges that were asked for, and the same file from the same texts in any process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mtvl.backbones.bpe import joined, learn
from mtvl.backbones.tokenizers import load_bart_tokenizer, train_bart_tokenizer

TEXTS = ["a low lower lowest wall", "new newer newest walls", "the widest wall is low, isn't it?"] * 3
FIRST = ["<s>"]


def naive(words: dict[str, int], number: int, suffix: str) -> list[tuple[str, str]]:
    """The definition: count all pairs anew after each merge."""
    split = {word: [*word[:-1], word[-1] + suffix] for word in words}
    merges = []
    for _ in range(number):
        counts: Counter[tuple[str, str]] = Counter()
        for word, pieces in split.items():
            for pair in zip(pieces, pieces[1:], strict=False):
                counts[pair] += words[word]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = {word: joined(pieces, best) for word, pieces in split.items()}
    return merges


def test_merges_are_those_of_the_definition() -> None:
    words = dict(Counter(" ".join(TEXTS).split())) | {"aaaa": 7, "aaa": 2, "abab": 3, "x": 1}
    vocabulary, merges = learn(words, 10_000, first=FIRST, suffix="</w>")
    assert merges == naive(words, 10_000, "</w>") and len(merges) > 20
    assert list(vocabulary.values()) == list(range(len(vocabulary))) and vocabulary["<s>"] == 0
    characters = len({*FIRST, *(p for w in words for p in (*w[:-1], w[-1] + "</w>"))})
    fewer, some = learn(words, characters + 5, first=FIRST, suffix="</w>")
    assert some == merges[:5] and len(fewer) == characters + 5
    assert joined(["a", "a", "a"], ("a", "a")) == ["aa", "a"]


def test_another_process_learns_the_same() -> None:
    """Sets and hash tables are walked in another order there."""
    code = (
        "import json; from mtvl.backbones.bpe import learn; print(json.dumps(learn(WORDS, 60, first=[], suffix='@')))"
    )
    words = dict(Counter(" ".join(TEXTS).split()))
    printed = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        job = [sys.executable, "-c", code.replace("WORDS", repr(words))]
        printed.add(subprocess.run(job, check=True, env=environment, capture_output=True, text=True).stdout)
    vocabulary, merges = learn(words, 60, first=[], suffix="@")
    assert printed == {json.dumps([vocabulary, merges]) + "\n"} and len(merges) > 20


def test_a_trained_tokenizer(tmp_path: Path) -> None:
    train_bart_tokenizer(TEXTS, tmp_path / "tokenizer.json", 90)
    train_bart_tokenizer(TEXTS, tmp_path / "again.json", 90)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    tokenizer = load_bart_tokenizer(str(tmp_path))
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    assert [tokenizer.raw.convert_tokens_to_ids(token) for token in special] == list(range(5))
    assert tokenizer.decode(tokenizer.encode("The lowest WALLS")) == "the lowest walls" and len(tokenizer) == 90
    assert tokenizer.encode("a <mask> wall")[1] == 4 and 3 in tokenizer.encode("\u00df")
