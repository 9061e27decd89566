"""Sites: the only language that backbones and methods share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Kinds of sites. Linear kinds can be adapted, hook kinds take an adapter that the backbone itself calls, and the others
# can only be unfrozen.
LINEAR_KINDS = (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.out",
    "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.out",
    "ffn.up", "ffn.down",
)  # fmt: skip
HOOK_KINDS = ("input", "self_attn", "cross_attn", "block")
PARAMETER_KINDS = (
    "norm",
    "visual",
    "embedding",
    "tower",
    "head",
    "lm_head",
    "scalar",
    "answers",
)  # "tower": a visual tower that is trained


@dataclass
class BlockStates:
    """What the adapter of a "block" hook is called with; it returns (output, side) and may change either.

    All are (B, S, D): `before` is the block's input, `query` the output of its self-attention where cross-attention
    follows in this pass (None in a pass of one modality), `stream` what its feed-forward part reads, `output` the
    block's own result. `side` is what the hook of the block below returned in the same pass, None at the first.
    """

    before: torch.Tensor
    query: torch.Tensor | None
    stream: torch.Tensor
    output: torch.Tensor
    side: torch.Tensor | None = None


@dataclass(frozen=True)
class Site:
    """A place in a backbone that a method may adapt or unfreeze.

    `path` is the module path inside the backbone; `stack` is "encoder", "decoder", "visual" or "tower"; `layer` counts from 0
    (-1: outside the layers). `d_in`/`d_out` are the widths of a linear or hook site (0 otherwise). `num_parameters`
    counts the module's own parameters, tied ones once over the whole site table; `num_bias` of them are its bias vector.
    `frozen_in_paper`: the reference implementation leaves this norm frozen where norms are asked for.

    A hook site has no parameters. Where its module has a child `adapter`, the backbone calls it: at "input" (the text
    encoder) with the embedded text (B, S, D) before its norm and the mask (B, S) -> longer ones of both; at "self_attn"
    and "cross_attn" with keys and values (B, heads, S, D/heads) -> longer ones of both, the added places in front; at
    "block" with `BlockStates`. Heads beside the language model ("head": contrast, matching) serve some tasks only;
    "lm_head" is what turns hidden states into tokens, "scalar" a single number such as a temperature. What pre-training did
    not know ("answers": a head over a list of answers or over two pictures, and the maps that join their branches) is
    trained with every method.

    An adapter at a linear site may have an attribute `modality`. A backbone in which one block runs with and without
    cross-attention sets it before each run of the block: "visual", "text" or "fusion".
    """

    path: str
    kind: str
    stack: str
    layer: int
    d_in: int = 0
    d_out: int = 0
    num_parameters: int = 0
    num_bias: int = 0
    frozen_in_paper: bool = False

    def __post_init__(self) -> None:
        if self.kind not in LINEAR_KINDS + HOOK_KINDS + PARAMETER_KINDS:
            raise ValueError(f"unknown site kind {self.kind!r} at {self.path}")

    @property
    def is_linear(self) -> bool:
        """True when an adapter can be wrapped around it."""
        return self.kind in LINEAR_KINDS

    @property
    def is_hook(self) -> bool:
        """True when the backbone calls an adapter that is placed here."""
        return self.kind in HOOK_KINDS
