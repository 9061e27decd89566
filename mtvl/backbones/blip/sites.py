"""BLIP's places for methods."""

from __future__ import annotations

import re

from torch import nn

from mtvl.sites import Site

_BLOCK = re.compile(r"(vision|text|decoder)\.(?:blocks|layers)\.(\d+)\.(.+)")
_STACKS = {"vision": "visual", "text": "encoder", "decoder": "decoder"}
_ATTENTION = {"attn": "self_attn", "cross": "cross_attn"}
_HEADS = {"contrast", "match"}


def site_table(model: nn.Module) -> list[Site]:
    """Every module with parameters once, tied ones where they appear first, then the hooks."""
    seen: set[int] = set()
    sites = []
    for path, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        if not own or ".adapter." in path:
            continue
        seen.update(id(p) for p in own)
        kind, stack, layer = _kind(path)
        d_in, d_out = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (0, 0)
        num_bias = sum(p.numel() for p in own if p is getattr(module, "bias", None))
        sites.append(Site(path, kind, stack, layer, d_in, d_out, sum(p.numel() for p in own), num_bias))
    return sites + _hooks(model)


def _kind(path: str) -> tuple[str, str, int]:
    """(kind, stack, layer) of a parameter-bearing module."""
    if match := _BLOCK.fullmatch(path):
        stack, layer, rest = _STACKS[match[1]], int(match[2]), match[3]
        if "norm" in rest:
            return "norm", stack, layer
        part, _, inner = rest.partition(".")
        if part == "ffn":
            return f"ffn.{inner}", stack, layer
        if inner == "merge":
            return "answers", stack, -1  # no file of a model of one picture holds it
        return f"{_ATTENTION[part]}.{inner.rpartition('.')[2]}", stack, layer
    root = path.partition(".")[0]
    if root == "compare":
        return "answers", "encoder", -1
    if root in _HEADS:
        return "head", "encoder", -1
    if root == "temperature":
        return "scalar", "encoder", -1
    if path.endswith("norm"):
        return "norm", _STACKS[root], -1
    return ("lm_head" if ".head" in path else "embedding"), _STACKS[root], -1


def _hooks(model: nn.Module) -> list[Site]:
    """Where the towers look for an adapter. A tied decoder has the encoder's cross-attention and no hook of its own."""
    hooks, seen = [], set()
    for name, stack in _STACKS.items():
        if (tower := getattr(model, name, None)) is None:
            continue
        width = tower.shape.width
        if name == "text":
            hooks.append(Site(name, "input", stack, -1, width, width))
        for layer, block in enumerate(tower.blocks if name == "vision" else tower.layers):
            path = f"{name}.{'blocks' if name == 'vision' else 'layers'}.{layer}"
            hooks.append(Site(path, "block", stack, layer, width, width))
            if name == "vision":
                continue
            hooks.append(Site(f"{path}.attn", "self_attn", stack, layer, width, width))
            branches = ["cross"] if hasattr(block.cross, "q") else ["cross.first", "cross.second"]
            if id(block.cross) not in seen:
                hooks += [Site(f"{path}.{branch}", "cross_attn", stack, layer, width, width) for branch in branches]
            seen.add(id(block.cross))
    return hooks
