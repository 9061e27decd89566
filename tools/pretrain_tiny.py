"""Pretrain the tiny CLIP-BART that ships with the package (mtvl/backbones/weights/tiny), from nothing but miniworld.

    python tools/pretrain_tiny.py OUT [--tower-minutes 6] [--minutes 25] [--seed 0]

1. Tower: a small CLIP residual tower learns to name the attributes of the object on each lattice cell.
2. Tokenizer: byte-pair encoding over miniworld text and a list of common English words.
3. Language model: everything but the tower learns to fill masked words of statements about pictures ("cloze") and to
   describe pictures densely.

All pictures come from the split "pretrain": disjoint seeds, and none of the compositions that are held out for tests.
The benchmarks' own questions, statements and captions are never seen. Bounded by minutes, the learning rate follows the
clock, and a run is repeated in kind but not bit for bit; bounded by `--tower-steps` and `--steps` it is a function of
the seed and the library versions. What was run is recorded in backbone.json. The bundled weights' language model was
bounded by minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from mtvl.backbones.clip_bart import PRESETS, ClipBart, ClipBartConfig
from mtvl.backbones.tokenizers import load_bart_tokenizer, train_bart_tokenizer
from mtvl.backbones.towers import GridTower
from mtvl.data.miniworld.language import cloze, cloze_pair, describe
from mtvl.data.miniworld.render import render
from mtvl.data.miniworld.scene import COLOURS, LATTICE, SHAPES, SIZES, TEXTURES, grid_labels, scene_at
from mtvl.objectives.seq2seq import sample_losses, token_losses
from mtvl.types import Batch

SPLIT_SEED = 1_000_003  # the stream of pictures that pretraining draws from
CLASSES = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1, len(TEXTURES) + 1)
VOCABULARY = 1600


class Clock:
    """Progress of a phase that is bounded by steps or by minutes."""

    def __init__(self, name: str, minutes: float, steps: int) -> None:
        self.name, self.minutes, self.steps, self.start, self.step = name, minutes, steps, time.time(), 0

    @property
    def share(self) -> float:
        """Part of the phase that is done, 0..1; drives the learning rate."""
        if self.steps:
            return min(1.0, self.step / self.steps)
        return min(1.0, (time.time() - self.start) / (60 * self.minutes))

    def report(self, every: int, **values: float) -> None:
        """Print a line every `every` steps."""
        if self.step % every == 0:
            seconds = time.time() - self.start
            left = seconds * (1 - self.share) / max(self.share, 1e-6)
            text = " ".join(f"{k} {v:.4f}" for k, v in values.items())
            print(f"{self.name} step {self.step} {text} | {seconds:.0f}s, about {left:.0f}s left", flush=True)


def cosine(share: float, peak: float) -> float:
    """Learning rate: 5 % warm-up, then a cosine to 0."""
    return peak * (share / 0.05 if share < 0.05 else 0.5 * (1 + np.cos(np.pi * (share - 0.05) / 0.95)))


def pretrain_tower(clock: Clock, seed: int, batch: int = 64) -> tuple[GridTower, dict[str, float]]:
    """Dense attribute prediction: at each of the 16 lattice cells colour, shape, size and texture (or "empty")."""
    torch.manual_seed(seed)
    tower = GridTower("tiny").requires_grad_(True).train()
    head = nn.Linear(tower.grid[1], sum(CLASSES))
    centres = (torch.arange(LATTICE) + 0.5) / LATTICE * 2 - 1
    points = torch.stack(torch.meshgrid(centres, centres, indexing="ij")[::-1], dim=-1)[None]
    side = round(tower.grid[0] ** 0.5)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.05)

    def logits(start: int) -> tuple[torch.Tensor, torch.Tensor]:
        scenes = [scene_at(SPLIT_SEED + seed, "pretrain", start + i) for i in range(batch)]
        labels = torch.from_numpy(np.stack([grid_labels(s) for s in scenes]))
        grid = tower(tower.preprocess([render(s) for s in scenes])).transpose(1, 2).reshape(batch, -1, side, side)
        cells = nn.functional.grid_sample(grid, points.expand(batch, -1, -1, -1), align_corners=False)
        return head(cells.flatten(2).transpose(1, 2)), labels

    def loss_of(out: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        parts = out.split(CLASSES, dim=-1)
        return sum(nn.functional.cross_entropy(p.flatten(0, 1), labels[..., i].flatten()) for i, p in enumerate(parts))

    while clock.share < 1:
        for group in optimizer.param_groups:
            group["lr"] = cosine(clock.share, 2e-3)
        out, labels = logits(clock.step * batch)
        loss = loss_of(out, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step += 1
        clock.report(50, loss=float(loss))
    tower.eval().requires_grad_(False)
    with torch.no_grad():
        out, labels = logits(10_000_000)
        used = labels[..., 0] > 0
        names = ("colour", "shape", "size", "texture")
        hits = {
            n: float((p.argmax(-1) == labels[..., i])[used].float().mean())
            for i, (n, p) in enumerate(zip(names, out.split(CLASSES, dim=-1), strict=True))
        }
    print("tower accuracy on objects:", hits)
    return tower, hits


def corpus(seed: int, scenes: int = 3000) -> list[str]:
    """Texts for the tokenizer: cloze statements with their answers, descriptions, common words."""
    rng = random.Random(seed)
    texts = []
    for index in range(scenes):
        scene = scene_at(SPLIT_SEED + seed, "pretrain", index)
        texts.append(describe(scene, rng))
        texts += [t.replace("<mask>", a) for t, a in cloze(scene, rng)]
    words = (Path(__file__).parent / "assets" / "common_words.txt").read_text().split()
    return texts + words * 20 + ["vqa: gqa: nlvr: caption: fill: pair: describe:"] * 200


def encode_pictures(tower: GridTower, seed: int, count: int, cache: Path) -> torch.Tensor:
    """(count, P, F) float16 features of the first `count` pretraining pictures; kept in `cache` for another try."""
    if cache.is_file():
        return torch.load(cache, weights_only=True)
    parts, start = [], time.time()
    for first in range(0, count, 256):
        pictures = [render(scene_at(SPLIT_SEED + seed, "pretrain", i)) for i in range(first, min(first + 256, count))]
        parts.append(tower.encode(pictures).half())
        if first % 5120 == 0:
            print(f"features {first}/{count} {time.time() - start:.0f}s", flush=True)
    torch.save(torch.cat(parts), cache)
    return torch.cat(parts)


class Stream:
    """Endless batches of cloze, pair-cloze and description samples."""

    def __init__(self, tokenizer, features: torch.Tensor, seed: int, rows: int) -> None:
        self.tokenizer, self.features, self.seed, self.rows = tokenizer, features, seed, rows
        self.cache: dict[str, list[int]] = {}
        self.pool: dict[str, list[tuple[tuple[int, ...], str, str]]] = {"one": [], "two": [], "all": []}
        self.rng = random.Random(seed + 17)
        side = (torch.arange(6) + 0.5) / 6 * LATTICE  # the lattice cell under the middle of each pooled visual token
        cells = (side.long()[:, None] * LATTICE + side.long()[None, :]).flatten()
        grids = [grid_labels(scene_at(SPLIT_SEED + seed, "pretrain", i)) for i in range(len(features))]
        self.labels = torch.from_numpy(np.stack(grids))[:, cells]

    def _ids(self, text: str) -> list[int]:
        if text not in self.cache:
            pieces = [self.tokenizer.encode(p) for p in text.split("<mask>")]
            ids = pieces[0]
            for piece in pieces[1:]:
                ids = ids + [self.tokenizer.raw.mask_token_id] + piece
            self.cache[text] = ids
        return self.cache[text]

    def word(self, text: str) -> int:
        """The id of a word that must be one token."""
        ids = self.tokenizer.encode(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens; raise VOCABULARY")
        return ids[0]

    def _refill(self) -> None:
        rng, total = self.rng, len(self.features)
        for index in rng.sample(range(total), min(512, total)):
            scene = scene_at(SPLIT_SEED + self.seed, "pretrain", index)
            samples = cloze(scene, rng)
            self.pool["one"] += [((index,), "fill: " + t, a) for t, a in rng.sample(samples, min(8, len(samples)))]
            self.pool["all"].append(((index,), "describe:", describe(scene, rng)))
            other = rng.randrange(total)
            pairs = cloze_pair(scene, scene_at(SPLIT_SEED + self.seed, "pretrain", other), rng)
            self.pool["two"] += [((index, other), "pair: " + t, a) for t, a in rng.sample(pairs, min(3, len(pairs)))]
        for pool in self.pool.values():
            rng.shuffle(pool)

    def batch(self, share: float) -> tuple[Batch, torch.Tensor]:
        """One batch of one kind, and the attributes (B, V, 4) under its visual tokens (0: no object).

        Dense descriptions are long: mixing them in would pad every row to their length. They come first, since every
        word of a description is about the picture.
        """
        name = self.rng.choices(("one", "two", "all"), (0.45, 0.15, 0.4) if share < 0.2 else (0.64, 0.26, 0.1))[0]
        while len(self.pool[name]) < self.rows:
            self._refill()
        rows = [self.pool[name].pop() for _ in range(self.rows)]
        sources = [self.tokenizer.wrap(self._ids(t)) for _, t, _ in rows]
        targets = [self.tokenizer.wrap(self._ids(a)) for _, _, a in rows]

        def pad(lists: list[list[int]], value: int) -> torch.Tensor:
            width = max(map(len, lists))
            return torch.tensor([ids + [value] * (width - len(ids)) for ids in lists])

        source = pad(sources, self.tokenizer.pad_id)
        pictures = self.features[torch.tensor([r[0] for r in rows])].float()
        labels = self.labels[torch.tensor([r[0] for r in rows])].flatten(1, 2)
        batch = Batch("pretrain", (), source, source != self.tokenizer.pad_id, pictures, pad(targets, -100),
                      torch.ones(self.rows))  # fmt: skip
        return batch, labels


def region_loss(
    states: torch.Tensor, table: torch.Tensor, words: list[torch.Tensor], labels: torch.Tensor
) -> torch.Tensor:
    """Masked-region classification in word space: a visual token on an object should be near its attributes' words.

    states (B, V, D), table (K, D) token embeddings, words: ids of the words of each attribute, labels (B, V, 4).
    It ties pictures to words from the first steps on; without it this small model does not begin to look at the picture
    within an hour on two cores.
    """
    used = labels[..., 0] > 0
    parts = [
        nn.functional.cross_entropy(states[used] @ table[ids].T, labels[..., i][used] - 1)
        for i, ids in enumerate(words)
    ]
    return torch.stack(parts).mean()


def losses_of(
    model: ClipBart, batch: Batch, labels: torch.Tensor, words: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text loss, region loss (at the encoder's input and output), and the logits."""
    table = model.bart.model.shared.weight
    with torch.autocast("cpu", torch.bfloat16):
        memory = model.encode(batch)
        logits = model.decode(memory, batch.target_ids).float()
    losses = token_losses(logits, batch.target_ids)
    loss = sample_losses(losses, batch.target_ids, batch.target_weights).mean()
    seen = memory.hidden[:, batch.source_ids.shape[1] :].float()
    given = model.visual(batch.features, table)
    return loss, region_loss(seen, table, words, labels) + region_loss(given, table, words, labels), logits


def pretrain_text(clock: Clock, model: ClipBart, stream: Stream, peak: float = 1e-3) -> dict[str, float]:
    """Train every parameter of the language model and the visual embedding."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():  # at BART's deviation of 0.02 the slot rows would drown in the normalised features
        model.bart.model.shared.weight[-model.config.num_slots :].normal_(std=0.3)
        model.visual.features["grid"][1].weight.fill_(0.5)
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
    model.train()
    words = [torch.tensor([stream.word(w) for w in names]) for names in (COLOURS, SHAPES, SIZES, TEXTURES)]
    recent: list[tuple[float, float]] = []  # of cloze batches: loss, share of right first words
    described: list[float] = []
    while clock.share < 1:
        for group in optimizer.param_groups:
            group["lr"] = cosine(clock.share, peak)
        batch, labels = stream.batch(clock.share)
        loss, regions, logits = losses_of(model, batch, labels, words)
        optimizer.zero_grad()
        (loss + 0.3 * regions).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if batch.target_ids.shape[1] <= 5:
            hits = (logits.argmax(-1) == batch.target_ids)[:, 1]
            recent = [*recent[-199:], (float(loss.detach()), float(hits.float().mean()))]
        else:
            described = [*described[-99:], float(loss.detach())]
        clock.step += 1
        values = {
            "cloze": float(np.mean([r[0] for r in recent])) if recent else float("nan"),
            "first_word": float(np.mean([r[1] for r in recent])) if recent else float("nan"),
            "describe": float(np.mean(described)) if described else float("nan"),
            "regions": float(regions.detach()) / 2,
        }
        clock.report(50, **values)
    model.eval()
    return values


def main() -> int:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-minutes", type=float, default=6)
    parser.add_argument("--tower-steps", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=24000)
    parser.add_argument("--rows", type=int, default=96)
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, object] = {
        "seed": args.seed,
        "pictures": args.pictures,
        "rows": args.rows,
        "torch": torch.__version__,
    }
    tower_file = out / "tower.safetensors"
    if tower_file.is_file():
        print(f"tower taken from {tower_file}")
        tower = GridTower("tiny", str(tower_file))
        record |= json.loads((out / "tower.json").read_text())
    else:
        clock = Clock("tower", args.tower_minutes, args.tower_steps)
        tower, hits = pretrain_tower(clock, args.seed)
        save_file(
            {k: v.half() if v.is_floating_point() else v for k, v in tower.trunk.state_dict().items()}, str(tower_file)
        )
        (out / "tower.json").write_text(json.dumps({"tower_steps": clock.step, "tower_accuracy": hits}))
        record |= json.loads((out / "tower.json").read_text())
        tower = GridTower("tiny", str(tower_file))  # as users will have it: rounded to float16
    if not (out / "tokenizer.json").is_file():
        train_bart_tokenizer(corpus(args.seed), out / "tokenizer.json", VOCABULARY)
    tokenizer = load_bart_tokenizer(str(out))
    print(f"tokenizer: {len(tokenizer)} ids")
    # At 128 wide BART's 0.02 leaves attention flat for a long time; 0.08 is near 1 / sqrt(128).
    text = {**PRESETS["tiny"], "vocab_size": len(tokenizer), "init_std": 0.08}
    torch.manual_seed(args.seed)
    model = ClipBart.build(ClipBartConfig(preset="tiny", text=text, tower="tiny", dropout=0.0, init_seed=args.seed))
    print(f"language model: {sum(p.numel() for p in model.parameters()):,} parameters")
    stream = Stream(
        tokenizer, encode_pictures(tower, args.seed, args.pictures, out / "features.pt"), args.seed, args.rows
    )
    clock = Clock("text", args.minutes, args.steps)
    record |= {"text": pretrain_text(clock, model, stream), "steps": clock.step}
    state = {k: v.half() for k, v in model.state_dict().items()
             if k not in ("bart.lm_head.weight", "bart.final_logits_bias") and not k.endswith("embed_tokens.weight")}  # fmt: skip
    save_file(state, str(out / "model.safetensors"))
    (out / "tower.json").unlink(missing_ok=True)
    (out / "features.pt").unlink()
    (out / "backbone.json").write_text(json.dumps({"text": text, "tower": "tiny", "recipe": record}, indent=1) + "\n")
    total = sum(f.stat().st_size for f in out.iterdir())
    print(f"wrote {out}: {total / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
