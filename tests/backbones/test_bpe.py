"""Byte-pair encoding: the merges that were asked for, and the same file from the same texts in any process."""

from __future__ import annotations

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


def test_the_same_texts_give_the_same_file_in_another_process(tmp_path: Path) -> None:
    train_bart_tokenizer(TEXTS, tmp_path / "tokenizer.json", 120)
    code = (
        "import sys; from pathlib import Path; from mtvl.backbones.tokenizers import train_bart_tokenizer as t; "
        f"t({TEXTS!r}, Path(sys.argv[1]), 120)"
    )
    other = tmp_path / "other.json"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code, str(other)], check=True, env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": root})  # fmt: skip
    assert other.read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    tokenizer = load_bart_tokenizer(str(tmp_path))
    assert [tokenizer.raw.convert_tokens_to_ids(t) for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert tokenizer.decode(tokenizer.encode("the lowest walls")) == "the lowest walls"
    assert tokenizer.encode("a <mask> wall")[1] == 4 and 3 in tokenizer.encode("ß")
    assert len(tokenizer.encode("wall")) == 1 and len(tokenizer) == 120
