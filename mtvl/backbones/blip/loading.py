"""Reading BLIP's weights: every tensor of the file and of the model is accounted for, or the file is refused."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mtvl.backbones.blip.keys import ALIASES, State, from_original, hub_to_original, original_name
from mtvl.backbones.blip.unimodal import NAME as UNIMODAL
from mtvl.backbones.blip.unimodal import read_unimodal
from mtvl.errors import CheckpointError

POSITION = "vision.embed.position"
_MOMENTUM = re.compile(r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\.")
_QUEUES = ("image_queue", "text_queue", "idx_queue", "ptr_queue", "queue_ptr")
_POSITION_IDS = re.compile(r"(.*\.)?embeddings\.position_ids")
# Parts that a checkpoint of another kind does not have, by the begin of our names; others have to be there.
_OPTIONAL = {
    "decoder.": "no decoder", "contrast.": "no contrast heads", "match.": "no matching head",
    "compare.": "no head that compares two pictures", "temperature.": "no temperature",
}  # fmt: skip
_PARTS = {
    "text_encoder.": "text encoder", "text_decoder.": "decoder", "vision_proj.": "contrast heads",
    "text_proj.": "contrast heads", "itm_head.": "matching head", "cls_head.": "comparing head", "temp": "temperature",
}  # fmt: skip


@dataclass
class LoadReport:
    """What loading did: `fresh` and `unused` map names (ours, the file's) to reasons; `interpolated` says what to what."""

    source: str = ""
    loaded: int = 0
    fresh: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    interpolated: str = ""
    copied_twice: int = 0

    def text(self) -> str:
        """A line a fact, names grouped by reason."""
        lines = [f"{self.source}: {self.loaded} tensors loaded"]
        if self.interpolated:
            lines.append(f"  interpolated: {self.interpolated}")
        if self.copied_twice:
            lines.append(f"  copied into both branches of cross-attention: {self.copied_twice} tensors")
        for what, names in (("start at random", self.fresh), ("not used", self.unused)):
            for reason in dict.fromkeys(names.values()):
                same = [name for name, why in names.items() if why == reason]
                lines.append(f"  {len(same)} {what} ({reason}): {same[0]}{', ...' if len(same) > 1 else ''}")
        return "\n".join(lines)


def read_state(source: str) -> State:
    """Tensors of a .pth or .safetensors file, a folder or a hub name, under the original names.

    Pickled files are read with `weights_only`: what is no tensor or plain container is refused. CheckpointError when
    nothing can be read there.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
    elif not path.is_file():
        path = _from_hub(source)
    if not path.is_file():
        raise CheckpointError(
            f"expected BLIP's weights at {path}, found no file; give a .pth or .safetensors file, or {UNIMODAL} for the towers "
            "of packages"
        )
    try:
        content: Any = (
            load_file(str(path)) if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )  # fmt: skip
    except pickle.UnpicklingError:  # torch's own words advise to unpickle it all the same
        raise CheckpointError(
            f"{path} cannot be read as weights: expected what torch.save writes of tensors by name, found something else, or "
            "more than tensors, which is not unpickled"
        ) from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from None
    content = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise CheckpointError(f"{path}: expected tensors by name, or such a table under 'model'")
    if any(name.startswith("vision_model.") for name in content):
        return {hub_to_original(name): tensor for name, tensor in content.items()}
    return content


def _from_hub(source: str) -> Path:
    if source.endswith((".pth", ".safetensors")) or source.count("/") != 1:
        return Path(source)
    from transformers.utils import cached_file  # slow import

    try:
        return Path(str(cached_file(source, "model.safetensors")))
    except OSError as error:
        raise CheckpointError(f"no weights at {source}: {str(error).splitlines()[0]}") from None


def load_weights(model: Any, source: str) -> LoadReport:
    """Read `source` into `model`; see `load_original`. `source` may be the name of the packaged towers (`unimodal`)."""
    if source == UNIMODAL:
        towers = read_unimodal(model.vision_shape, model.text_shape)
        return load_original(model, towers.state, source, towers.fresh)
    return load_original(model, read_state(source), source)


@torch.no_grad()
def load_original(
    model: Any, original: Mapping[str, torch.Tensor], source: str, fresh: Mapping[str, str] | None = None
) -> LoadReport:
    """Put a state of original names into `model` (a Blip) in place.

    `fresh`: patterns of our names that such a source does not have -> why. Raises CheckpointError, before anything is changed, for tensors that neither side can explain.
    """
    report = LoadReport(source)
    own = model.state_dict()
    given = dict(original)
    if model.parts.encoder == "two":
        report.copied_twice = _two_branches(given)
    found, used = from_original(given, list(own))
    if POSITION in found and found[POSITION].shape != own[POSITION].shape:
        report.interpolated = _describe(found[POSITION], own[POSITION])
        found[POSITION] = interpolate_positions(found[POSITION], own[POSITION].shape[1])
    _drop_other_widths(model, found, own, report)
    for name in sorted(set(own) - set(found)):
        if reason := next((why for pattern, why in (fresh or {}).items() if re.match(pattern, name)), ""):
            report.fresh[name] = reason
    _explain_missing(set(own) - set(found) - set(report.fresh), given, report)
    _explain_unused(given, used, report)
    _check_tied(own, found, source)
    for name, tensor in found.items():
        own[name].copy_(tensor)
    report.loaded = len(found)
    return report


def interpolate_positions(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """A position table (1, P, D) for `tokens` places: the class token's row is kept, the square grid resized.

    Bicubic without antialiasing, corners not aligned, in float32 at least. Raises CheckpointError for a grid that is no square.
    *Source:* BLIP's `interpolate_pos_embed`.
    """
    sides = [round((count - 1) ** 0.5) for count in (table.shape[1], tokens)]
    if sides[0] ** 2 != table.shape[1] - 1 or sides[1] ** 2 != tokens - 1:
        raise CheckpointError(f"positions of {table.shape[1]} and {tokens} tokens are not both a square and one more")
    if sides[0] == sides[1]:
        return table
    table = table.to(torch.promote_types(table.dtype, torch.float32))  # tools/pretrain_blip.py writes halves
    grid = table[:, 1:].unflatten(1, (sides[0], sides[0])).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def momentum_of(model: Any, original: Mapping[str, torch.Tensor]) -> State:
    """The teacher's tensors of an original state under our names; {} where it has none."""
    teacher = {_MOMENTUM.sub(r"\1.", n): t for n, t in original.items() if _MOMENTUM.match(n)}
    return from_original(teacher, [name for name, _ in model.named_parameters()])[0]


def _describe(found: torch.Tensor, own: torch.Tensor) -> str:
    before, after = (round((t.shape[1] - 1) ** 0.5) for t in (found, own))
    return f"positions {before} x {before} -> {after} x {after}"


def _two_branches(given: dict[str, torch.Tensor]) -> int:
    """Give a state of one-picture cross-attention the names of two branches, in place.

    *Source:* BLIP's NLVR2 loading.
    """
    count = 0
    for name in [
        n for n in given if ".crossattention." in n and not _MOMENTUM.match(n) and n.startswith("text_encoder.")
    ]:
        for one in (".crossattention.self.", ".crossattention.output.dense."):
            if one in name:
                tensor = given.pop(name)
                for branch in "01":
                    given[name.replace(one, f"{one[:-1]}{branch}.")] = tensor
                count += 1
    return count


def _drop_other_widths(model: Any, found: State, own: State, report: LoadReport) -> None:
    """Take out what has another shape, where that has a known reason; CheckpointError where it has none."""
    for name in [n for n in found if found[n].shape != own[n].shape]:
        reads_text = model.parts.decoder_reads == "text" and re.match(
            r"decoder\.layers\.\d+\.cross\.[kv]\.weight", name
        )
        if reads_text and found[name].shape[1] == model.vision_shape.width:
            report.fresh[name] = "the decoder reads text states here, image tokens in the file"
            report.fresh[name.removesuffix("weight") + "bias"] = report.fresh[name]
            found.pop(name)
            found.pop(name.removesuffix("weight") + "bias", None)
            continue
        raise CheckpointError(
            f"{report.source}: {original_name(name)} is {tuple(found[name].shape)}, expected {tuple(own[name].shape)}; "
            "is 'backbone.preset' the file's?"
        )


def _explain_missing(missing: set[str], given: Mapping[str, torch.Tensor], report: LoadReport) -> None:
    unexplained = []
    for name in sorted(missing):
        begin = next((b for b in _OPTIONAL if name.startswith(b)), None)
        if begin is not None and not _has_part(begin, given):
            report.fresh[name] = f"the file has {_OPTIONAL[begin]}"
        elif ".cross.merge." in name and report.copied_twice:
            report.fresh[name] = "the file is of one picture"
        else:
            unexplained.append(original_name(name))
    if unexplained:
        raise CheckpointError(
            f"{report.source} lacks {len(unexplained)} tensors of this model, e.g. {', '.join(unexplained[:3])}; is "
            "'backbone.preset' or 'backbone.kind' another one?"
        )


def _has_part(begin: str, given: Mapping[str, torch.Tensor]) -> bool:
    root = {"decoder.": "text_decoder.", "contrast.": ("vision_proj.", "text_proj."), "match.": "itm_head.",
            "compare.": "cls_head.", "temperature.": "temp"}[begin]  # fmt: skip
    return any(name.startswith(root) for name in given)


def _explain_unused(given: Mapping[str, torch.Tensor], used: set[str], report: LoadReport) -> None:
    present = {name.partition(".")[0] for name in used}
    unexplained = []
    for name in sorted(set(given) - used):
        part = next((p for p in _PARTS if name.startswith(p)), None)
        if _MOMENTUM.match(name):
            report.unused[name] = "the momentum teacher's"
        elif name in _QUEUES:
            report.unused[name] = "a queue"
        elif _POSITION_IDS.fullmatch(name):
            report.unused[name] = "numbers of positions"
        elif name in ALIASES and (original := given.get(ALIASES[name])) is not None:
            if not torch.equal(original, given[name]):
                raise CheckpointError(f"{report.source}: {name} and {ALIASES[name]} are tied and differ")
            report.unused[name] = "a second name of a tied tensor"
        elif part is not None and part.rstrip(".") not in present:
            report.unused[name] = f"this model has no {_PARTS[part]}"
        else:
            unexplained.append(name)
    if unexplained:
        raise CheckpointError(
            f"{report.source} has {len(unexplained)} tensors that this model does not know, e.g. "
            f"{', '.join(unexplained[:3])}; is 'backbone.preset' or 'backbone.kind' another one?"
        )


def _check_tied(own: State, found: State, source: str) -> None:
    """CheckpointError when two names of one of our tensors are given different numbers."""
    first: dict[int, str] = {}
    for name in found:
        other = first.setdefault(own[name].data_ptr(), name)
        if other != name and own[name].shape == own[other].shape and not torch.equal(found[name], found[other]):
            raise CheckpointError(
                f"{source}: {original_name(other)} and {original_name(name)} are tied in this model and differ in the "
                "file; choose a 'backbone.kind' with a decoder of its own"
            )
