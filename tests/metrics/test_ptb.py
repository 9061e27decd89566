from __future__ import annotations

import pytest

from mtvl.metrics import java
from mtvl.metrics.ptb import drop_punctuation, ptb_tokens, python_ptb

CAPTIONS = [
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
    ("Mr. and Mrs. Smith on Sunset Blvd. at 3 p.m.", "mr. and mrs. smith on sunset blvd. at 3 p.m."),
    ("from St. Louis, Mo. to the U.S.; a Ph.D. etc.", "from st. louis mo. to the u.s. a ph.d. etc."),
    ("Mass. Ave. and mass. of people", "mass. ave. and mass of people"),
    ("fig. 5 of figs and pp. 5-6", "fig. 5 of figs and pp. 5-6"),
    ("I'd've said y'all can't", "i 'd 've said y' all ca n't"),
    ("O'Neil's l'eau, ma'am, in the '90s or '95", "o'neil 's l'eau ma'am in the '90s or '95"),
    ("'Twas the dogs' ol' toy, 'til now", "'t was the dogs ol' toy 'til now"),
    ("don\u2019t: O\u2019Neil", "do n't o\u2019neil"),
    ("2 1/2-inch, 1/2-inch and 24/7", "2\u00a01/2 inch 1/2-inch and 24/7"),
    ("10:30am, 7.30pm, 1,000 eggs, -5 or 12ab", "10:30 am 7.30 pm 1,000 eggs -5 or 12ab"),
    ("R&B, M&Ms, salt&pepper, C++", "r&b m&m s salt & pepper c++"),
    ("US$5, \u20ac5, 5\u00a2 and 1\u00bd", "us$ 5 $ 5 5 cents and 1 1/2"),
    ("see www.example.com/page, http://a.com or me@a.com.", "see www.example.com/page http://a.com or me@a.com"),
    ("0012.jpg, a <unk> :)", "0012.jpg a <unk> :-rrb-"),
    ("mother's-in-law jack-o'-lantern", "mother 's in-law jack-o lantern"),
    ("end.Next one!!No", "end.next one !! no"),
    ("cafe\u0301 na\u00efve r\u00e9sum\u00e9's m\u00b2", "cafe\u0301 na\u00efve r\u00e9sum\u00e9 's m \u00b2"),
    ("", ""),
    (" \t ", ""),
    ("...", ""),
]


@pytest.mark.parametrize(("text", "expected"), CAPTIONS)
def test_known_captions(text: str, expected: str) -> None:
    assert python_ptb(text) == expected


@pytest.mark.skipif(java.find_java() is None, reason="no working java on PATH")
def test_known_captions_are_the_programs() -> None:
    """What is expected above is what the Stanford tokeniser says. A line's end is judged by the line after it there."""
    texts = [text for text, _ in CAPTIONS for text in (text, "and so on")]
    found = [drop_punctuation(line) for line in java.run_ptb(texts)][::2]
    assert found == [expected for _, expected in CAPTIONS]


def test_every_character_alone_ends_and_gives_at_most_two_tokens() -> None:
    for code in [*range(0x3000), 0xD800, 0xFEFF, 0xFFFD, 0x1F600]:
        assert len(ptb_tokens(chr(code))) <= 2


def test_brackets_survive_because_the_list_is_upper_case() -> None:
    assert drop_punctuation("-lrb- a , b -RRB- . ''") == "-lrb- a b"
