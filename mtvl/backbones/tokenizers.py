"""One face for the tokenizers of the backbones, and the training of a small one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mtvl.backbones.bpe import learn
from mtvl.errors import CheckpointError

_SUFFIX = "</w>"  # of the piece that ends a word
ALPHABET = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789.,:;?!'-_/()[]\"&"))  # of a tokenizer that is trained here
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
T5_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


class TextTokenizer:
    """Text to ids and back. How a family wraps sources and targets, and how many tokens that adds, is its subclass's."""

    num_special: int

    def __init__(self, raw: PreTrainedTokenizerFast) -> None:
        self.raw = raw
        self.pad_id, self.eos_id = int(raw.pad_token_id), int(raw.eos_token_id)

    def __len__(self) -> int:
        return len(self.raw)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without special tokens."""
        return list(self.raw.encode(text, add_special_tokens=False))

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """`ids` with the family's special tokens."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens dropped."""
        return str(self.raw.decode(list(ids), skip_special_tokens=True)).strip()


class BartText(TextTokenizer):
    """BART's convention: `<s> ids </s>` for sources and targets."""

    num_special = 2

    def __init__(self, raw: PreTrainedTokenizerFast) -> None:
        super().__init__(raw)
        self.bos_id = int(raw.bos_token_id)

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """`<s> ids </s>`."""
        return [self.bos_id, *ids, self.eos_id]


class T5Text(TextTokenizer):
    """T5's convention: `ids </s>` for sources and targets."""

    num_special = 1

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """`ids </s>`."""
        return [*ids, self.eos_id]


def load_bart_tokenizer(source: str) -> BartText:
    """From a folder with tokenizer files or a hub name (the hub is asked only for a name that is no folder)."""
    return BartText(_load_raw(source, "vocab.json", SPECIAL))


def load_t5_tokenizer(source: str) -> T5Text:
    """From a folder with tokenizer.json or sentencepiece's spiece.model, or a hub name (as `load_bart_tokenizer`)."""
    return T5Text(_load_raw(source, "spiece.model", T5_SPECIAL))


def _load_raw(source: str, other: str, special: dict[str, str]) -> PreTrainedTokenizerFast:
    """`other` is the file that a folder may hold in place of tokenizer.json."""
    folder = Path(source)
    if folder.is_dir() and (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    if folder.is_dir() and not (folder / other).is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json and no {other}; save one there with the tokenizer's save_pretrained"
        )
    from transformers import AutoTokenizer  # slow import

    try:
        return AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise CheckpointError(f"no tokenizer at {source}: {str(error).splitlines()[0]}") from None


def train_bart_tokenizer(texts: Iterable[str], file: Path, vocab_size: int = 1000) -> None:
    """Train a word-level-start BPE tokenizer with BART's special ids (0 <s>, 1 <pad>, 2 </s>, 3 <unk>, 4 <mask>).

    The same texts give the same file.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)) if word
    )
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary, merges = learn(words, vocab_size, first=[*special, *ALPHABET], suffix=_SUFFIX)
    tokenizer = RawTokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", end_of_word_suffix=_SUFFIX))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.BPEDecoder(suffix=_SUFFIX)
    tokenizer.add_special_tokens(special)
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))
