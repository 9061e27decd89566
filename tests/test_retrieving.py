"""Retrieval over a split: the same scores as the published loop over dense matrices, and ranks that follow from them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from distributed import launch_ok

from mtvl.backbones.blip import BlipBackbone, BlipConfig
from mtvl.errors import EngineError
from mtvl.evaluator import Evaluator
from mtvl.retrieving import TokenFile, retrieve
from mtvl.steps.reranking import rerank
from mtvl.types import Batch, Decoding, Example, Segment, Visual

SIDE = 16


class Stub:
    """A collator: pixels are drawn from the picture's number, ids from the text."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def collate(self, task: str, examples: list[Example], *, training: bool) -> Batch:
        assert not training
        ids = torch.stack([torch.randint(5, 58, (6,), generator=seeded(e.segments[0].text)) for e in examples])
        mask = torch.arange(6)[None] < torch.tensor([6 - len(e.segments[0].text) % 3 for e in examples])[:, None]
        features = torch.zeros(len(examples), 0, 0, 0)
        if examples[0].visual.images:
            self.shown += [e.visual.images[0] for e in examples]
            features = torch.stack([torch.randn(1, SIDE**2, 3, generator=seeded(e.visual.images[0])) for e in examples])
        targets = torch.full((len(examples), 1), -100)
        return Batch(task, tuple(e.uid for e in examples), ids, mask, features, targets, torch.ones(len(examples)))


def seeded(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, text)))


def examples() -> list[Example]:
    """Seven pictures with one, two or three texts each."""
    return [
        Example(f"{item}_{n}", "find", (Segment("question", f"text {'x' * item} {n}"),), Visual(images=(f"/p/{item}.png",)))
        for item in range(7)
        for n in range(1 + item % 3)
    ]  # fmt: skip


def build() -> BlipBackbone:
    text = {"width": 32, "layers": 2, "heads": 4, "ffn": 48, "vocab": 60, "positions": 40, "eos_id": 3}
    vision = {"width": 32, "layers": 2, "heads": 4, "patch": 8}
    config = BlipConfig(kind="retrieval", image_size=SIDE, vision=vision, text=text, embed_dim=12, init_std=0.2)
    return BlipBackbone.build(config).eval()


def test_ranks_are_those_of_the_dense_matrices() -> None:
    """Top 3 of seven pictures and fourteen texts; every picture is encoded once."""
    model, rows, stub = build(), examples(), Stub()
    decoding = Decoding(mode="retrieve", top=3, beta=0.7)
    found = retrieve(model, "find", decoding, rows, stub, 4, "cpu")
    assert sorted(stub.shown) == [f"/p/{i}.png" for i in range(7)]

    with torch.no_grad():
        whole = Stub().collate("find", rows, training=False)
        items = Stub().collate(
            "find", [next(e for e in rows if e.uid.startswith(f"{i}_")) for i in range(7)], training=False
        )
        tokens = model.see(model.pixels(items)[0])
        vectors = model.text_features(model.read(whole.source_ids, whole.source_mask))
        similarity = model.image_features(tokens) @ vectors.T
        texts = whole.source_ids, whole.source_mask
        by_text, by_item = (
            rerank(model, lambda i: tokens[i], texts, similarity, 3, by_text=flag, beta=0.7).numpy() for flag in (True, False)
        )  # fmt: skip
    owner = np.array([int(e.uid[0]) for e in rows])
    for row, prediction in enumerate(found):
        scores = by_text[row]
        better, same = (scores > scores[owner[row]]).sum(), (scores == scores[owner[row]]).sum()
        assert prediction.scores["text_rank"] == 1 + better + (same - 1) / 2
        assert prediction.text == f"{int(scores.argmax())}.png"
        own = by_item[owner[row]]
        best = own[owner == owner[row]].max()
        assert prediction.scores["item_rank"] == 1 + (own > best).sum() + ((own == best).sum() - 1) / 2
    assert {p.scores["text_rank"] for p in found} > {1.0} and [p.uid for p in found] == [e.uid for e in rows]


def test_blocks_change_nothing() -> None:
    model, rows = build().double(), examples()
    decoding = Decoding(mode="retrieve", top=5)
    assert retrieve(model, "find", decoding, rows, Stub(), 3, "cpu") == retrieve(
        model, "find", decoding, rows, Stub(), 64, "cpu"
    )


def test_there_is_a_beat_for_every_block() -> None:
    """Items, texts and pairs in blocks of four: whoever watches must not take a long split for a hang."""
    beats: list[int] = []
    retrieve(
        build(), "find", Decoding(mode="retrieve", top=7), examples(), Stub(), 4, "cpu", beat=lambda: beats.append(1)
    )
    texts = len(examples())
    assert len(beats) == -(-7 // 4) + -(-texts // 4) + -(-7 * texts // 4)


def test_a_text_without_its_picture_among_the_best_is_behind_all_of_them() -> None:
    model = build()
    rows = [replace(e, segments=(Segment("question", f"{e.uid} words"),)) for e in examples()]
    ranks = {
        p.scores["text_rank"] for p in retrieve(model, "find", Decoding(mode="retrieve", top=1), rows, Stub(), 8, "cpu")
    }
    assert ranks == {1.0, 1 + 1 + (6 - 1) / 2}  # one ahead, six that tie


@pytest.mark.multiproc
def test_ranks_share_the_pictures_and_agree_with_one_process() -> None:
    """Each picture is encoded once over all ranks, and every text gets the ranks that one process gives it."""
    decoding = Decoding(mode="retrieve", top=3, beta=0.7)
    alone = retrieve(build().double(), "find", decoding, examples(), Stub(), 4, "cpu")
    ends = launch_ok(Path(__file__).with_name("retrieving_rank.py"), 2)
    parts = [json.loads(next(line for line in end.output.splitlines() if line.startswith("{"))) for end in ends]
    assert sorted(parts[0]["shown"] + parts[1]["shown"]) == [f"/p/{i}.png" for i in range(7)]
    assert all(part["shown"] for part in parts)
    found = {uid: (text, scores) for part in parts for uid, text, scores in part["found"]}
    assert sum(len(part["found"]) for part in parts) == len(found) == len(alone)
    assert found == {p.uid: (p.text, dict(p.scores)) for p in alone}


def test_tokens_are_read_from_their_file_by_number(tmp_path: Path) -> None:
    rows = torch.randn(5, 1, 3, 4)
    with TokenFile(tmp_path / "tokens") as file:
        file.append(rows[:2])
        assert torch.equal(file.read([1, 0]), rows[[1, 0]])
        file.append(rows[2:].double())
        assert torch.equal(file.read([4, 0, 2]), rows[[4, 0, 2]])


def test_a_killed_run_leaves_no_tokens_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their file has no name any more while it is written and read; the folder is where TMPDIR says."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = []

    class Looking(Stub):
        def collate(self, task: str, examples: list[Example], *, training: bool) -> Batch:
            left.append([p.relative_to(tmp_path).parts[1:] for p in tmp_path.rglob("*")])
            return super().collate(task, examples, training=training)

    retrieve(build(), "find", Decoding(mode="retrieve", top=3), examples(), Looking(), 4, "cpu")
    assert len(left) == 3 and all(found == [()] for found in left) and not any(tmp_path.iterdir())


def test_a_full_disk_says_where_to_put_the_tokens() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with TokenFile(Path("/dev/full")) as file, pytest.raises(EngineError, match=r"/dev/full.*48 bytes.*TMPDIR"):
        file.append(torch.zeros(2, 1, 3, 4))


def test_split_weights_are_refused() -> None:
    """Ranks have other numbers of items: they would wait for each other's passes."""
    evaluator = Evaluator(build(), SimpleNamespace(), run=lambda _batch, action: action())
    with pytest.raises(EngineError, match="'find' is answered over its whole split"):
        evaluator.retrieve(SimpleNamespace(name="find", decoding=Decoding(mode="retrieve")), examples(), Stub(), 4)
