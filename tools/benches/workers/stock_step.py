"""A training step of transformers' BART-base with random weights: full | frozen | peft | adapters.

The same tokens as in own_step: 36 projected visual tokens before 20 words, 6 label tokens, AdamW, clipping, and dropout 0.1
in the three places where facebook/bart-base has it.
"full" trains all, "peft" LoRA with r = 128 on the queries and values, "adapters" the library's Houlsby bottlenecks of 96
(twice a layer), "frozen" nothing but the projection: input gradients alone, which no adapter can undercut.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.workers.protocol import Step, claim_output, serve  # noqa: E402

ANSWERS = claim_output() if __name__ == "__main__" else sys.stdout

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import nn  # noqa: E402

SIDE = sys.argv[1] if __name__ == "__main__" else ""
if SIDE == "peft":
    import peft
elif SIDE == "adapters":
    import adapters

ROWS, SOURCE, TARGET, GRID = 16, 20, 6, (36, 2048)


def adapt(bart: nn.Module) -> nn.Module:
    """Freeze `bart` and add what SIDE trains."""
    if SIDE == "full":
        return bart
    bart.requires_grad_(False)
    if SIDE == "peft":
        config = peft.LoraConfig(r=128, lora_alpha=128, target_modules=["q_proj", "v_proj"], task_type="SEQ_2_SEQ_LM")
        return peft.get_peft_model(bart, config)
    if SIDE == "adapters":
        adapters.init(bart)
        bart.add_adapter("task", config=adapters.DoubleSeqBnConfig(reduction_factor=8))
        bart.train_adapter("task")
    return bart


def prepare() -> tuple[Step, str]:
    """The step and the number of trained parameters."""
    torch.manual_seed(0)
    bart = transformers.BartForConditionalGeneration(transformers.BartConfig(
        d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12,
        encoder_ffn_dim=3072, decoder_ffn_dim=3072, vocab_size=50265, dropout=0.1, attention_dropout=0.1,
        activation_dropout=0.1,
    ))  # fmt: skip
    words = bart.get_input_embeddings()
    model = adapt(bart).train()
    project = nn.Sequential(nn.Linear(GRID[1], 768), nn.LayerNorm(768))
    trained = [p for p in [*model.parameters(), *project.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids, labels = torch.randint(10, 1000, (ROWS, SOURCE)), torch.randint(10, 1000, (ROWS, TARGET))
    features, mask = torch.rand(ROWS, *GRID), torch.ones(ROWS, GRID[0] + SOURCE, dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        inputs = torch.cat([project(features), words(ids)], 1)
        model(inputs_embeds=inputs, attention_mask=mask, labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()

    versions = f"transformers {transformers.__version__}"
    if SIDE in ("peft", "adapters"):
        versions += f", {SIDE} {sys.modules[SIDE].__version__}"
    return step, f"{sum(p.numel() for p in trained):,} trained, {versions}"


if __name__ == "__main__":
    serve(prepare, ANSWERS)
