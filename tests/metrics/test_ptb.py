from __future__ import annotations

import pytest

from mtvl.metrics.ptb import drop_punctuation, ptb_tokens, python_ptb


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man, a plan - and a canal!", "a man a plan and a canal"),
        ("Don't touch the cook's knife.", "do n't touch the cook 's knife"),
        ("cannot gonna lemme", "can not gon na lem me"),
        ('He said: "stop!" (loudly)', "he said stop -lrb- loudly -rrb-"),
        ("The U.S. Army at 5:30 p.m.", "the u.s. army at 5:30 p.m."),
        ("No. 5 but no. and no.7", "no. 5 but no and no. 7"),
        ("50% off $5.00", "50 % off $ 5.00"),
        ("hello...world", "hello world"),
        ("what?! now?", "what ?! now"),
        ("rock'n'roll o'clock", "rock 'n' roll o'clock"),
        ("it\u2019s \u201cquoted\u201d", "it 's quoted"),
        ("plan c. The end", "plan c the end"),
        ("a cat., a dog", "a cat. a dog"),
        ("a/b user_name t-shirt #tag e-mail @ home", "a/b user_name t-shirt #tag e-mail @ home"),
        ("add 1 1/2 cups", "add 1\u00a01/2 cups"),
        ("dog \U0001f600 cat", "dog cat"),
        ("", ""),
        (" \t ", ""),
        ("...", ""),
    ],
)
def test_known_captions(text: str, expected: str) -> None:
    assert python_ptb(text) == expected


def test_every_character_alone_ends_and_gives_at_most_two_tokens() -> None:
    for code in [*range(0x3000), 0xD800, 0xFEFF, 0xFFFD, 0x1F600]:
        assert len(ptb_tokens(chr(code))) <= 2


def test_brackets_survive_because_the_list_is_upper_case() -> None:
    assert drop_punctuation("-lrb- a , b -RRB- . ''") == "-lrb- a b"
