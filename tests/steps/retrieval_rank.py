"""One of two ranks: the retrieval step with negatives from both; compared with one process that has both ranks' rows."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from mtvl.backbones.blip import Blip, BlipConfig
from mtvl.steps.retrieval import Pairs, RetrievalOptions, RetrievalStep

ROWS, RANKS = 2, 2
NEGATIVES = [(torch.tensor([2, 3]), torch.tensor([1, 2])), (torch.tensor([0, 1]), torch.tensor([3, 0]))]


def setup() -> tuple[Blip, RetrievalStep, tuple[torch.Tensor, ...]]:
    model = Blip.build(BlipConfig(kind="retrieval", preset="tiny", image_size=32, embed_dim=12)).double().eval()
    step = RetrievalStep(model, RetrievalOptions(queue_size=6, all_ranks=True)).double()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    ids = torch.randint(4, 118, (4, 6), generator=generator)
    return model, step, (pixels, ids, torch.ones(4, 6, dtype=torch.bool), torch.tensor([4, 5, 6, 7]))


def of_rank(batch: tuple[torch.Tensor, ...], rank: int) -> tuple[torch.Tensor, ...]:
    return tuple(t[rank * ROWS : (rank + 1) * ROWS] for t in batch)


def both_in_one_process() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Averaged gradients and the queue's ids."""
    model, step, batch = setup()
    step.teacher.update(model)
    own = [step.look(model, *of_rank(batch, r)) for r in range(RANKS)]
    taught = [step.teach(model, *of_rank(batch, r)[:3]) for r in range(RANKS)]
    everyone = Pairs(**{k: torch.cat([getattr(p, k) for p in own]) for k in vars(own[0])})
    losses = [step.losses(model, own[r], taught[r], everyone, 0.4, NEGATIVES[r]).total for r in range(RANKS)]
    (sum(losses) / RANKS).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, batch[3]


def main() -> None:
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    model, step, batch = setup()
    step(model, *of_rank(batch, rank), 0.4, negatives=NEGATIVES[rank]).total.backward()
    expected, ids = both_in_one_process()
    worst = 0.0
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name not in expected), name
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            worst = max(worst, float((parameter.grad / RANKS - expected[name]).abs().max()))
    assert worst < 1e-12, worst
    assert step.queue.ids.tolist() == [*ids.tolist(), -100, -100]
    print("same", worst)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
