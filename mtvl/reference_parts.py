"""What each method adds to a released VL-Adapter state: its names there, and its options as read off a state."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mtvl.errors import CheckpointError
from mtvl.petl.plan import SHARED

State = Mapping[str, torch.Tensor]

TASK_NAMES = {"nlvr": "nlvr2", "caption": "coco"}  # reference name -> ours; all other names are equal
_REFERENCE_TASKS = {ours: theirs for theirs, ours in TASK_NAMES.items()}


def our_task(name: str) -> str:
    """Our name of a reference task."""
    return TASK_NAMES.get(name, name)


def reference_task(name: str) -> str:
    """The reference's name of one of our tasks."""
    return _REFERENCE_TASKS.get(name, name)


# ---- names -------------------------------------------------------------------------------------------------------

ROOTS = {"bart": "model.", "t5": ""}  # what stands before `encoder` and `decoder` in a family's names
_PLACES = {
    ("encoder", "self_attn.out_proj"): "attn_adapter",
    ("decoder", "self_attn.out_proj"): "self_attn_adapter",
    ("decoder", "encoder_attn.out_proj"): "enc_attn_adapter",
    ("encoder", "fc2"): "ff_adapter",
    ("decoder", "fc2"): "ff_adapter",
    ("encoder", "SelfAttention.o"): "attn_adapter",
    ("decoder", "SelfAttention.o"): "attn_adapter",
    ("decoder", "EncDecAttention.o"): "enc_attn_adapter",
    ("encoder", "DenseReluDense.wo"): "ff_adapter",
    ("decoder", "DenseReluDense.wo"): "ff_adapter",
}
_PHM_LEAVES = {"rule": "phm_rule", "left": "W_left", "right": "W_right"}  # all other leaves are called as ours
_LOW_RANK = {"down": "lora_As", "up": "lora_Bs"}
_PROMPT_LAYERS = {"table": 0, "hidden": 1, "out": 3}  # a tanh stands at 2
_NETWORK = {
    "layers": "layer_id_embeddings", "hidden": "task_hypernet.task_embeding_generator.0",
    "out": "task_hypernet.task_embeding_generator.2", "LayerNorm": "LayerNorm",
}  # fmt: skip
_BLOCKS = {"self_attn": "self_attention", "cross_attn": "cross_attention", "ffn": "feed_forward"}


def _sampler(match: re.Match[str], task: str) -> list[str]:
    leaf = _PHM_LEAVES.get(match["leaf"], match["leaf"])
    place = _PLACES[match["stack"], match["place"]]
    return [f"{match['layer']}.{place}.adapters.{task}.{match['half']}_sampler.{leaf}"]


def _low_rank(match: re.Match[str], task: str) -> list[str]:
    return [f"{match['site']}.{_LOW_RANK[match['half']]}.{task}"]


def _prompt(match: re.Match[str], task: str) -> list[str]:
    layer = f"{_PROMPT_LAYERS[match['layer']]}.{match['leaf']}"
    return [f"encoder.prompt_modules.prompts.{task}.prefix_embedding.{layer}"]


def _task_vector(match: re.Match[str], task: str) -> list[str]:
    owners = ("shared_task_embed", "encoder.task_embed", "decoder.task_embed")
    return [f"{owner}.task_to_embeddings.{task}" for owner in owners]


def _network(match: re.Match[str], task: str) -> list[str]:
    return [f"{match['stack']}.adapter_layers_hyper_net.{_NETWORK[match['layer']]}.{match['leaf']}"]


def _generator(match: re.Match[str], task: str) -> list[str]:
    sampler = f"{_BLOCKS[match['block']]}_{match['half']}_sampler_hyper_net"
    return [f"{match['stack']}.adapter_layers_hyper_net.{sampler}.{match['what']}_generator.0.{match['leaf']}"]


_LAYER = r"(?P<layer>(?P<stack>encoder|decoder)\.(?:layers\.\d+|block\.\d+\.layer\.\d))"
_NET = r"common\.adapter\.(?P<stack>encoder|decoder)\.net\.(?P<owner>shared)"
_ADAPTERS = ("adapter", "adapter_prompt", "compacter")  # LoRA at the same places has no names in the reference
_ADDED: tuple[tuple[tuple[str, ...], re.Pattern[str], Callable[[re.Match[str], str], list[str]]], ...] = tuple(
    (methods, re.compile(pattern), names)
    for methods, pattern, names in (
        (_ADAPTERS, _LAYER + r"\.(?P<place>\w+_attn\.out_proj|fc2|\w+Attention\.o|DenseReluDense\.wo)\.adapter\.(?P<half>down|up)\.(?P<owner>[^.]+)\.(?P<leaf>\w+)", _sampler),
        (("lora",), r"(?P<site>.+\.[qkv]_proj)\.adapter\.(?P<half>down|up)\.(?P<owner>[^.]+)\.weight", _low_rank),
        (("prompt", "adapter_prompt"), r"encoder\.adapter\.prompt\.(?P<owner>[^.]+)\.(?P<layer>table|hidden|out)\.(?P<leaf>\w+)", _prompt),
        (("hyperformer",), r"common\.adapter\.tasks\.vector\.(?P<owner>[^.]+)\.weight", _task_vector),
        (("hyperformer",), _NET + r"\.(?P<layer>layers|hidden|out|LayerNorm)\.(?P<leaf>\w+)", _network),
        (("hyperformer",), _NET + r"\.blocks\.(?P<block>\w+)\.(?P<half>down|up)_(?P<what>weight|bias)\.(?P<leaf>\w+)", _generator),
    )
)  # fmt: skip


def added_names(name: str, tasks: Sequence[str], root: str, method: str) -> tuple[str, ...]:
    """Reference names of a parameter that `method` added, () when it has none there.

    `name` is ours without `backbone.` and the language model's name, `root` the family's of ROOTS.
    """
    for methods, pattern, names in _ADDED:
        if method in methods and (match := pattern.fullmatch(name.removeprefix(root))):
            owners = tasks if match["owner"] == SHARED else (match["owner"],)
            return tuple(dict.fromkeys(root + n for task in owners for n in names(match, reference_task(task))))
    return ()


# ---- what a state says about itself ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Added:
    """A method with those of its options that a state tells, and our names of its tasks."""

    method: str = "full"
    options: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()


_OWNED = {
    "adapter": re.compile(
        r"(?P<site>.+\.\w*adapter)\.adapters\.(?P<task>[^.]+)\.(?P<half>down|up)_sampler\.(?P<leaf>\w+)"
    ),
    "lora": re.compile(r"(?P<site>.+_proj)\.lora_(?P<half>As|Bs)\.(?P<task>[^.]+)(?P<leaf>)"),
    "prompt": re.compile(r"(?P<site>.+)\.prompts\.(?P<task>[^.]+)\.(?P<half>prefix_embedding)\.(?P<leaf>.+)"),
    "hyperformer": re.compile(r"(?P<site>(?:model\.)?shared_task_embed)\.(?P<half>\w+)\.(?P<task>[^.]+)(?P<leaf>)"),
}
_HALVES = {"down": ("down", "As", "prefix_embedding"), "up": ("up", "Bs", "prefix_embedding")}
_SHARES = {(True, True): "all", (True, False): "down", (False, True): "up", (False, False): "none"}

Owned = dict[tuple[str, str, str], dict[str, torch.Tensor]]  # (site, half, leaf) -> task -> value


def describe_added(full: State) -> Added:
    """Method, options and tasks of a state that has all its names.

    With parts of one task only, sharing cannot be told and "all" is assumed. LoRA's alpha and dropout are not in a
    state. CheckpointError when it holds several methods or one that has no counterpart here.
    """
    found: dict[str, Owned] = {}
    for name, value in full.items():
        for method, pattern in _OWNED.items():
            if match := pattern.fullmatch(name):
                owners = found.setdefault(method, {}).setdefault((match["site"], match["half"], match["leaf"]), {})
                owners[match["task"]] = value
    if not found:
        return Added()
    if set(found) == {"adapter", "prompt"}:  # both at once, each shared in its own way
        adapter, prompt = (_described(full, method, found[method]) for method in ("adapter", "prompt"))
        if adapter.method != "adapter":
            raise CheckpointError(
                "this state holds compacters and prompts; expected one of both, or adapters with prompts"
            )
        prompts = {"prompt_share" if key == "share" else key: value for key, value in prompt.options.items()}
        return Added("adapter_prompt", adapter.options | prompts, tuple(dict.fromkeys(adapter.tasks + prompt.tasks)))
    if len(found) > 1:
        raise CheckpointError(f"this state holds several methods, {' and '.join(found)}; expected one")
    return _described(full, *next(iter(found.items())))


def _described(full: State, method: str, owned: Owned) -> Added:
    """One method of a state, from the parts that it owns there."""
    tasks = tuple(dict.fromkeys(our_task(task) for owners in owned.values() for task in owners))
    if method == "hyperformer":
        site = next(iter(owned))[0]
        return Added(method, _hyperformer(full, site.removesuffix("shared_task_embed")), tasks)
    leaves = {leaf: value for (_, _, leaf), owners in owned.items() for value in list(owners.values())[:1]}
    options: dict[str, Any] = {"share": _share(owned)}
    if method == "adapter":
        options["bottleneck"] = _width(owned)
        if "phm_rule" in leaves:
            method, options["division"] = "compacter", leaves["phm_rule"].shape[0]
            options |= {"rank": leaves["W_left"].shape[2]} if "W_left" in leaves else {}
        elif "weight" not in leaves:
            raise CheckpointError("compacters with one rule for all places have no known names in a released state")
    elif method == "lora":
        options["rank"] = next(next(iter(o.values())).shape[0] for (_, half, _), o in owned.items() if half == "As")
    else:
        options |= {"length": leaves["0.weight"].shape[0], "width": leaves["1.weight"].shape[0]}
    return Added(method, options, tasks)


def _share(owned: Owned) -> str:
    shared = []
    for names in _HALVES.values():
        groups = [list(owners.values()) for (_, half, _), owners in owned.items() if half in names]
        shared.append(all(v is group[0] or torch.equal(v, group[0]) for group in groups for v in group[1:]))
    return _SHARES[shared[0], shared[1]]


def _width(owned: Owned) -> int:
    """The bottleneck: the length of the down-projections' biases."""
    widths = {
        next(iter(owners.values())).shape[0]
        for (_, half, leaf), owners in owned.items()
        if half == "down" and leaf in ("bias", "b")
    }
    if len(widths) != 1:
        raise CheckpointError(f"adapters of one width are expected, found {sorted(widths)}")
    return widths.pop()


def _hyperformer(full: State, root: str) -> dict[str, Any]:
    net = f"{root}encoder.adapter_layers_hyper_net"
    keys = {
        "task_width": f"{net}.layer_id_embeddings.weight", "hidden": f"{net}.task_hypernet.task_embeding_generator.0.weight",
        "code": f"{net}.task_hypernet.task_embeding_generator.2.weight",
        "bottleneck": f"{net}.feed_forward_down_sampler_hyper_net.bias_generator.0.weight",
    }  # fmt: skip
    if absent := [key for key in keys.values() if key not in full]:
        raise CheckpointError(f"this state has task vectors but no {', '.join(absent)}")
    sizes = {option: full[key].shape for option, key in keys.items()}
    return {option: shape[1 if option == "task_width" else 0] for option, shape in sizes.items()}
