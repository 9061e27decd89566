"""The task file of an own set: the settings that suit its kind, for people to edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preparing.own import OwnSet

# A word is up to three tokens of a small vocabulary; two ids more for start and end.
TOKENS_PER_WORD, LEAST_TOKENS, MOST_TOKENS = 3, 20, 100

_SETTINGS = {
    "caption": ("cider", "caption: "),
    "answer": ("accuracy", "vqa: "),
    "choice": ("accuracy", "vqa: "),
}


def _words(text: str) -> int:
    """How many words `text` counts for; many scripts put no blanks between theirs, or letters of several bytes in them."""
    words = len(text.split())
    return words if text.isascii() else max(words, -(-len(text.encode()) // 4))


def task_text(own: OwnSet, counts: Mapping[str, int], *, has_videos: bool) -> str:
    """Content of `tasks/NAME.yaml` for the splits in `counts`."""
    primary, prompt = _SETTINGS[own.kind]
    longest = max(_words(text) for row in own.rows for text in row.outputs)
    tokens = min(MOST_TOKENS, max(LEAST_TOKENS, TOKENS_PER_WORD * longest + 2))
    decoding = f"mode: generate, num_beams: {5 if own.kind == 'caption' else 1}, max_tokens: {tokens}"
    if own.kind == "choice":
        names = ", ".join(f"a{i}" for i in range(len(own.rows[0].outputs)))
        decoding = f"mode: rank, choices: [{names}], max_tokens: {tokens}"
    lines = [
        f"# Made by tools/prepare.py from {own.source.name}. Yours to edit: an edited file is kept when you prepare again.",
        "# The class TaskConfig in mtvl/tasks/base.py says what each key means.",
        f"kind: {own.kind}",
        f"primary: {primary}",
        "# Stands before every text. The same prompt as in a benchmark continues what was learned there.",
        f'prompt: "{prompt}"',
        "# 0: as long as the backbone reads and writes.",
        "limits: {source_tokens: 0, target_tokens: 0}",
        f"# max_tokens: {TOKENS_PER_WORD} a word (or 4 bytes) of your longest text, at most {MOST_TOKENS}." if own.kind != "choice"
        else "# The choices of a row are ranked by their likelihood.",
        f"decoding: {{{decoding}}}",
        "loss: sample_mean",
    ]  # fmt: skip
    if has_videos:
        lines.append("video: {span: text, subtitles: all}")
    if own.kind == "caption":
        lines += ["", "families:", "  bart:", "    decoding: {no_repeat_ngram: 3}"]
    lines += ["", "sources:", "  - format: own_table", "    files:"]
    for split in counts:
        lines += [f"      {split}:", f"        rows: [{own.name}/{split}.jsonl]"]
    media, field = ("videos", "{vid_name}") if has_videos else ("pictures", "{name}")
    lines += [f"    {media}:", f"      - {own.name}/{media}/{field}"]
    return "\n".join(lines) + "\n"
