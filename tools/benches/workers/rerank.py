"""One evaluation of retrieval over PICTURES random pictures with a text each, by a small BLIP with random weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.workers.protocol import Step, claim_output, serve  # noqa: E402

ANSWERS = claim_output() if __name__ == "__main__" else sys.stdout

import torch  # noqa: E402

from mtvl.backbones.blip import BlipBackbone, BlipConfig  # noqa: E402
from mtvl.retrieving import retrieve  # noqa: E402
from mtvl.types import Batch, Decoding, Example, Segment, Visual  # noqa: E402

SIDE, WORDS, TOP, ROWS = 64, 8, 4, 64
CONFIG = BlipConfig(
    kind="retrieval", image_size=SIDE, embed_dim=32,
    vision={"width": 64, "layers": 1, "heads": 2, "patch": 4},
    text={"width": 64, "layers": 1, "heads": 2, "ffn": 128, "vocab": 120, "positions": 40, "eos_id": 3},
)  # fmt: skip


class Collator:
    """Batches whose pixels and words are drawn from the number of the picture or text."""

    def collate(self, task: str, rows: Sequence[Example], *, training: bool) -> Batch:
        """A batch of `rows`; without pictures where they show none."""
        ids = torch.stack([torch.randint(4, 118, (WORDS,), generator=_seeded(e.uid)) for e in rows])
        shown = [torch.randn(1, SIDE**2, 3, generator=_seeded(e.uid)) for e in rows if e.visual.images]
        return Batch(
            task, tuple(e.uid for e in rows), ids, torch.ones_like(ids, dtype=torch.bool),
            torch.stack(shown) if shown else torch.zeros(len(rows), 0, 0, 0), ids[:, :1], torch.ones(len(rows)),
        )  # fmt: skip


def _seeded(uid: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(uid))


def prepare() -> tuple[Step, str]:
    """The best 4 of both directions are matched again."""
    count = int(sys.argv[1])
    model = BlipBackbone.build(CONFIG).eval()
    rows = [Example(str(i), "find", (Segment("question", "words"),), Visual((f"{i}.png",))) for i in range(count)]
    decoding = Decoding(mode="retrieve", top=TOP)
    tokens = model.vision_shape.tokens * model.vision_shape.width * 4 / 2**20 * count
    return (
        lambda: retrieve(model, "find", decoding, rows, Collator(), ROWS, "cpu"),
        f"tokens of all pictures: {tokens:,.0f} MiB",
    )


if __name__ == "__main__":
    serve(prepare, ANSWERS)
