"""Loading of BLIP's weights accounts for every tensor, and refuses what it cannot explain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mtvl.backbones.blip import Blip, BlipConfig
from mtvl.backbones.blip.keys import original_to_hub, to_original
from mtvl.backbones.blip.loading import interpolate_positions, load_original, momentum_of
from mtvl.errors import CheckpointError


def build(kind: str, **options: Any) -> Blip:
    return Blip.build(BlipConfig(kind=kind, preset="tiny", **{"image_size": 32, "embed_dim": 12, **options}))


def original(kind: str, **options: Any) -> dict[str, torch.Tensor]:
    """A state under the original names, with what the original stores beside the weights."""
    model = build(kind, init_seed=7, **options)
    state = to_original(model.state_dict(), 8)
    for name in list(state):
        if name.startswith(("visual_encoder.", "text_encoder.", "vision_proj.", "text_proj.")) and kind == "retrieval":
            state[re.sub(r"^(\w+)\.", r"\1_m.", name)] = state[name] + 1
    if kind == "retrieval":
        state |= {"image_queue": torch.zeros(12, 8), "text_queue": torch.zeros(12, 8), "ptr_queue": torch.zeros(1)}
    if kind != "caption":
        state["text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("kind", ["retrieval", "caption", "vqa", "nlvr2", "pretrain"])
def test_a_file_of_its_own_kind_fills_everything(kind: str, tmp_path: Path) -> None:
    state = original(kind)
    torch.save({"model": state, "epoch": 3}, tmp_path / "model.pth")
    model = build(kind, weights=str(tmp_path / "model.pth"))
    assert not model.load_report.fresh and model.load_report.loaded == len(model.state_dict())
    back = to_original(model.state_dict(), 8)
    assert all(torch.equal(back[name], state[name]) for name in back)
    assert set(state) - set(back) <= set(model.load_report.unused)
    hub = {original_to_hub(n): t for n, t in back.items() if n != "temp" or kind != "retrieval"}
    save_file({n: t.clone() for n, t in hub.items()}, str(tmp_path / "model.safetensors"))
    again = build(kind, weights=str(tmp_path))  # transformers' folder; it stores no temperature
    assert set(again.load_report.fresh) <= {"temperature.value"}
    assert all(torch.equal(a, b) for (n, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True)
               if n != "temperature.value")  # fmt: skip


def test_positions_are_interpolated_and_said_so() -> None:
    state, model = original("caption"), build("caption", image_size=48)
    report = load_original(model, state, "file")
    assert report.interpolated == "positions 4 x 4 -> 6 x 6" and "4 x 4 -> 6 x 6" in report.text()
    table, own = state["visual_encoder.pos_embed"], model.vision.embed.position
    assert torch.equal(own[:, 0], table[:, 0]) and own.shape == (1, 37, 32)
    row = torch.linspace(0, 1, 4)
    ramp = torch.cat([torch.zeros(1, 1, 1), row.repeat(4)[None, :, None]], 1)  # grows along each row of the grid
    wider = interpolate_positions(ramp, 37)[0, 1:, 0].view(6, 6)
    assert bool((wider.diff(dim=1) > 0).all()) and float(wider.diff(dim=0).abs().max()) < 1e-6
    halves = interpolate_positions(ramp.half(), 37)
    assert halves.dtype == torch.float32 and torch.equal(halves, interpolate_positions(ramp.half().float(), 37))
    with pytest.raises(CheckpointError, match="square"):
        interpolate_positions(torch.zeros(1, 16, 4), 17)


def test_a_pretrained_file_starts_other_kinds() -> None:
    state = original("pretrain")
    report = load_original(build("joint"), state, "file")
    assert not report.fresh
    report = load_original(build("nlvr2", text={"layers": 2}), state, "file")
    assert report.copied_twice == 2 * 8 and set(report.fresh.values()) == {
        "the file has no head that compares two pictures"
    }
    report = load_original(build("caption"), state, "file")
    assert set(report.unused.values()) >= {"this model has no text encoder", "this model has no matching head"}
    assert "text encoder" in report.text()
    report = load_original(build("vqa"), original("retrieval"), "file")
    assert {n.partition(".")[0] for n in report.fresh} == {"decoder"}


def test_both_branches_of_two_pictures_start_alike() -> None:
    model = build("nlvr2", text={"layers": 8})
    report = load_original(model, original("pretrain", text={"layers": 8}), "file")
    cross = model.text.layers[0].cross
    assert torch.equal(cross.first.q.weight, cross.second.q.weight)
    assert {n for n in report.fresh if ".merge." in n} == {
        f"text.layers.{i}.cross.merge.{p}" for i in (6, 7) for p in ("weight", "bias")
    }


def test_a_decoder_that_reads_text_drops_keys_of_another_width() -> None:
    wide = {"vision": {"width": 48}}
    model = build("vqa", **wide)
    report = load_original(model, original("pretrain", **wide), "file")
    assert sorted(report.fresh) == sorted(
        f"decoder.layers.{i}.cross.{part}.{leaf}" for i in (0, 1) for part in "kv" for leaf in ("weight", "bias")
    )


def test_the_teacher_of_a_file_is_found() -> None:
    state, model = original("retrieval"), build("retrieval")
    load_original(model, state, "file")
    teacher = momentum_of(model, state)
    own = dict(model.named_parameters())
    assert set(teacher) == {n for n in own if not n.startswith(("match.", "temperature."))}
    assert all(torch.equal(teacher[n], own[n] + 1) for n in teacher)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.pop("visual_encoder.norm.weight"), "lacks 1 tensors.*visual_encoder.norm.weight"),
        (lambda s: s.pop("itm_head.bias"), "lacks 1 tensors.*itm_head.bias"),
        (lambda s: s.update(stranger=torch.zeros(1)), "does not know.*stranger"),
        (lambda s: s.update({"text_encoder.pooler.dense.weight": torch.zeros(1)}), "does not know.*pooler"),
        (
            lambda s: s.update({"itm_head.weight": torch.zeros(3, 32)}),
            r"itm_head.weight is \(3, 32\), expected \(2, 32\)",
        ),
    ],
)
def test_what_cannot_be_explained_is_refused_and_changes_nothing(edit: Any, words: str) -> None:
    state, model = original("retrieval"), build("retrieval")
    edit(state)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_original(model, state, "file")
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_tied_tensors_that_differ_are_refused() -> None:
    state = original("pretrain")
    state["text_decoder.bert.encoder.layer.1.output.dense.weight"] += 1
    with pytest.raises(CheckpointError, match="are tied.*differ"):
        load_original(build("pretrain"), state, "file")
    state = original("caption")
    state["text_decoder.cls.predictions.decoder.weight"] += 1
    with pytest.raises(CheckpointError, match="are tied and differ"):
        load_original(build("caption"), state, "file")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.zeros(1)}, "rogue": Path("x")}, tmp_path / "pickle.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("# Weights\n")
    for name, words in (("pickle.pth", "not unpickled"), ("text.pth", "found something else"), ("noise.safetensors", "cannot be read"), ("list.pth", "by name"),
                        ("absent.pth", "found no file")):  # fmt: skip
        with pytest.raises(CheckpointError, match=words) as error:
            build("caption", weights=str(tmp_path / name))
        assert name in str(error.value)
