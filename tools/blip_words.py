#!/usr/bin/env python3
"""Train the word pieces of the tiny BLIP on texts of the embedded data: tools/blip_words.py OUT [--pieces 1020] [--seed N]

What ships as `backbone.tokenizer: tiny_blip` is OUT/tokenizer.json of the default settings. The texts are those of the
bundled CLIP-BART's tokenizer (tools/pretrain_tiny.py): no file of the miniworld is read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pretrain_tiny import corpus  # noqa: E402
from pretraining.stream import episodes_of, scenes_of  # noqa: E402

from mtvl.backbones.blip.tokens import load_blip_tokenizer, train_word_pieces  # noqa: E402


def main() -> int:
    """Parse, train, and say how many ids there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--pieces", type=int, default=1020, help="[DEC] and [ENC] come on top")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = corpus(scenes_of(args.seed, 3000), episodes_of(args.seed, 1500), args.seed)
    train_word_pieces(texts, args.out / "tokenizer.json", args.pieces)
    tokenizer = load_blip_tokenizer(str(args.out))
    print(
        f"{args.out}: {len(tokenizer)} ids; set backbone.text.vocab={len(tokenizer)}, backbone.text.eos_id={tokenizer.eos_id}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
