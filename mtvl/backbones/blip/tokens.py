"""BLIP's tokenizer: BERT's word pieces with [DEC] and [ENC] behind them; and the training of a small one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mtvl.backbones.tokenizers import ALPHABET, TextTokenizer
from mtvl.errors import CheckpointError

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
VOCABULARIES = ("tokenizer.json", "vocab.txt")  # files of a folder, the first that is there
ADDED = ("[DEC]", "[ENC]")  # in this order: the public models have them at 30522 and 30523


class BlipText(TextTokenizer):
    """BERT's convention: `[CLS] ids [SEP]`; the model writes [ENC] or [DEC] in place of [CLS] where it has to.

    What is decoded ends with [SEP].
    """

    num_special = 2

    def __init__(self, raw: PreTrainedTokenizerFast) -> None:
        raw.eos_token = SPECIAL["sep_token"]
        raw.add_special_tokens({"extra_special_tokens": [name for name in ADDED if name not in raw.get_vocab()]})
        super().__init__(raw)
        ids = raw.convert_tokens_to_ids([SPECIAL["cls_token"], *ADDED])
        self.cls_id, self.dec_id, self.enc_id = (int(i) for i in ids)

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """`[CLS] ids [SEP]`."""
        return [self.cls_id, *ids, self.eos_id]

    def wrap_target(self, ids: Sequence[int]) -> list[int]:
        """`ids [SEP]`: the model begins with [DEC], which is no part of an answer."""
        return [*ids, self.eos_id]


def load_blip_tokenizer(source: str) -> BlipText:
    """From a folder with tokenizer.json or BERT's vocab.txt, or a hub name such as bert-base-uncased.

    Raises CheckpointError when there is none; the hub is asked only for a name that is no folder.
    """
    folder = Path(source)
    if (folder / "tokenizer.json").is_file():
        return BlipText(PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **SPECIAL))
    if (folder / "vocab.txt").is_file():
        return of_pieces((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    if folder.is_dir():
        raise CheckpointError(f"{folder} has no tokenizer.json and no vocab.txt; put BERT's vocab.txt there")
    from transformers import AutoTokenizer  # slow import

    try:
        return BlipText(AutoTokenizer.from_pretrained(source))
    except OSError as error:
        raise CheckpointError(f"no tokenizer at {source}: {str(error).splitlines()[0]}") from None


def of_pieces(pieces: Sequence[str]) -> BlipText:
    """The tokenizer of BERT's uncased word pieces, given in the order of their ids."""
    raw = _word_pieces({piece: i for i, piece in enumerate(pieces)})
    return BlipText(PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL))


def _word_pieces(vocab: dict[str, int]) -> RawTokenizer:
    """BERT's uncased word pieces over `vocab`."""
    tokenizer = RawTokenizer(models.WordPiece(vocab, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def train_word_pieces(texts: Iterable[str], file: Path, vocab_size: int = 1000) -> None:
    """Train BERT-like word pieces with the ids 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP]; [DEC] and [ENC] come on loading."""
    tokenizer = _word_pieces({SPECIAL["unk_token"]: 0})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), initial_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))
