"""One face for the tokenizers of the backbones, and the training of a small one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mtvl.errors import CheckpointError

ALPHABET = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789.,:;?!'-_/()[]\"&"))  # of a tokenizer that is trained here
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


class BartText:
    """BART's convention: `<s> ids </s>` for sources and targets."""

    num_special = 2

    def __init__(self, raw: PreTrainedTokenizerFast) -> None:
        self.raw = raw
        self.pad_id, self.eos_id, self.bos_id = int(raw.pad_token_id), int(raw.eos_token_id), int(raw.bos_token_id)

    def __len__(self) -> int:
        return len(self.raw)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without special tokens."""
        return list(self.raw.encode(text, add_special_tokens=False))

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """`<s> ids </s>`."""
        return [self.bos_id, *ids, self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens dropped."""
        return str(self.raw.decode(list(ids), skip_special_tokens=True)).strip()


def load_bart_tokenizer(source: str) -> BartText:
    """From a folder with tokenizer files or a hub name (the hub is asked only for a name that is no folder)."""
    folder = Path(source)
    if folder.is_dir() and (folder / "tokenizer.json").is_file():
        return BartText(PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **SPECIAL))
    if folder.is_dir() and not (folder / "vocab.json").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json; save one there with the tokenizer's save_pretrained")
    from transformers import AutoTokenizer  # slow import

    try:
        return BartText(AutoTokenizer.from_pretrained(source))
    except OSError as error:
        raise CheckpointError(f"no tokenizer at {source}: {str(error).splitlines()[0]}") from None


def train_bart_tokenizer(texts: Iterable[str], file: Path, vocab_size: int = 1000) -> None:
    """Train a word-level-start BPE tokenizer with BART's special ids (0 <s>, 1 <pad>, 2 </s>, 3 <unk>, 4 <mask>)."""
    tokenizer = RawTokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=ALPHABET,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))
