"""CLIP-ViL against transformers' own BERT, its list of answers, and what it reads of public checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LxmertConfig,
    LxmertModel,
    VisualBertConfig,
    VisualBertModel,
)

from mtvl.backbones.answers import NO_ANSWER, AnswerList
from mtvl.backbones.clip_config import BUNDLED
from mtvl.backbones.clip_vil import ClipVil
from mtvl.backbones.clip_vil_config import ClipVilConfig
from mtvl.backbones.tokenizers import load_bert_tokenizer
from mtvl.backbones.visual import GridEmbedding
from mtvl.config import RunConfig, parse_section
from mtvl.errors import CheckpointError, ConfigError
from mtvl.interchange.bundle import write_bundle
from mtvl.model import Model, build_model
from mtvl.types import Batch, Decoding, Target

OF_TASK = {"vqa": ["yes", "no", "red"], "gqa": ["red", "left"], "coco": ["true", "false"]}


@pytest.fixture(scope="module")
def section(tiny_backbones: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_backbones["clip_vil"].section, "dropout": 0.0}


@pytest.fixture(scope="module")
def backbone(section: dict[str, Any]) -> ClipVil:
    model = ClipVil.build(parse_section(ClipVilConfig, section)).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1)
    return model.requires_grad_(False)


def test_without_a_picture_it_is_transformers_bert(backbone: ClipVil, make_batch: Any) -> None:
    config = copy.deepcopy(backbone.bert.config)
    config._attn_implementation = "eager"
    oracle = BertModel(config, add_pooling_layer=False).eval()
    oracle.load_state_dict(backbone.bert.state_dict())
    batch = make_batch(pictures=0, backbone="clip_vil")
    states = oracle(input_ids=batch.source_ids, attention_mask=batch.source_mask.long()).last_hidden_state
    memory = backbone.encode(batch)
    assert states.abs().max() > 1 and oracle.config._attn_implementation == "eager"
    there = batch.source_mask
    torch.testing.assert_close(memory.hidden[there], states[there], atol=2e-5, rtol=1e-5)
    head = backbone.head
    wanted = head.out(head.norm(nn.functional.gelu(head.hidden(head.pool(states[:, 0])))))
    torch.testing.assert_close(backbone.answer_logits(memory), wanted, atol=2e-5, rtol=1e-5)


def test_cells_know_their_row_and_column() -> None:
    grid = GridEmbedding({"grid": 4}, 6, num_tokens=9, num_positions=5)
    found = grid(torch.zeros(1, 2, 9, 4), torch.empty(0))
    assert found.shape == (1, 18, 6)
    places = grid.rows.weight[2] + grid.columns.weight[1]
    linear, norm = grid.features["grid"]
    torch.testing.assert_close(found[0, 9 + 2 * 3 + 1], norm(linear(places)) + grid.image_order.weight[1])
    pooled = grid(torch.arange(36.0).view(1, 1, 36, 1).expand(-1, -1, -1, 4), torch.empty(0))
    wanted = norm(linear(7.0 + grid.rows.weight[0] + grid.columns.weight[0]))  # the largest of cells 0, 1, 6 and 7
    torch.testing.assert_close(pooled[0, 0], wanted + grid.image_order.weight[0])
    with pytest.raises(ConfigError, match="reads pictures and no 'frame' features"):
        grid(torch.zeros(1, 1, 9, 4), torch.empty(0), "frame")
    with pytest.raises(
        ConfigError, match=r"square number of at most 2 x 2 cells \('backbone\.grid_positions'\), found 9"
    ):
        GridEmbedding({"grid": 4}, 6, num_tokens=9, num_positions=2)


def test_the_answer_is_read_behind_prompts(section: dict[str, Any], make_batch: Any) -> None:
    """With learned vectors before the text the first token is no longer the first place."""
    model = build_model(
        RunConfig(tasks=("vqa",), backbone=section, petl={"name": "prompt", "length": 3, "width": 4})
    ).eval()
    batch = make_batch(backbone="clip_vil")
    with torch.no_grad():
        memory = model.encode(batch)
        assert memory.first == 3 and memory.hidden.shape[1] == 3 + batch.source_ids.shape[1] + 9
        assert torch.equal(model.backbone.answer_logits(memory), model.backbone.head(memory.hidden[:, 3]))
        assert memory.select([2]).first == memory.repeat(2).first == 3


def test_a_list_of_answers() -> None:
    answers = AnswerList(OF_TASK, exclusive=["coco"], size=8)
    assert answers.names == ("yes", "no", "red", "left", "true", "false") and len(answers) == 6
    assert (answers.encode("left"), answers.encode("Left"), answers.wrap([3])) == ([3], [], [3])
    assert (answers.decode([NO_ANSWER, 3]), answers.decode([NO_ANSWER]), answers.decode([7])) == ("left", "", "")
    assert answers.are_exclusive("coco") and not answers.are_exclusive("vqa")
    targets = [Target("red", 0.3), Target("left", 0.9), Target("unheard of", 1.0)]
    for task, wanted in (
        ("vqa", [0, 0, 0.3, -1, -1, -1, -1, -1]), ("gqa", [-1, -1, 0.3, 0.9, -1, -1, -1, -1]),
        ("another", [0, 0, 0.3, 0.9, 0, 0, -1, -1]),
    ):  # fmt: skip
        assert answers.scores(task, targets).tolist() == pytest.approx(wanted)
    assert AnswerList(OF_TASK).size == 6


def model_of(section: dict[str, Any], **petl: Any) -> Model:
    config = {**section, "answers": OF_TASK, "exclusive": ["coco"], "num_answers": 8}
    return build_model(RunConfig(tasks=tuple(OF_TASK), backbone=config, petl={"name": "full", **petl})).eval()


def batch_of(model: Model, make_batch: Any, task: str, *rows: tuple[Target, ...]) -> Batch:
    """A batch whose rows have the given targets; the first one was drawn."""
    answers, batch = model.backbone.answers, make_batch(task, rows=len(rows), backbone="clip_vil")
    ids = [answers.encode(row[0].text) or [-100] for row in rows]
    return dataclasses.replace(
        batch, target_ids=torch.tensor(ids), target_weights=torch.tensor([row[0].weight for row in rows]),
        answer_scores=torch.from_numpy(np.stack([answers.scores(task, row) for row in rows])),
    )  # fmt: skip


def test_a_task_is_answered_with_its_own_answers(section: dict[str, Any], make_batch: Any) -> None:
    model = model_of(section)
    for task, names in OF_TASK.items():
        batch = batch_of(model, make_batch, task, (Target(names[0]),), (Target(names[1]),))
        with torch.no_grad():
            logits = model.logits(batch)[:, 0]
        own = torch.zeros(8, dtype=torch.bool)
        own[[model.backbone.answers.encode(n)[0] for n in names]] = True
        assert bool(torch.isfinite(logits[:, own]).all()) and bool((logits[:, ~own] == -torch.inf).all())
        ids, scores = model.backbone.generate(model.encode(batch), Decoding(num_beams=2))
        assert all(model.backbone.answers.decode(row) in names for row in ids.tolist())
        torch.testing.assert_close(scores, logits.log_softmax(-1).max(-1).values / 2)
    with pytest.raises(ConfigError, match="a choice of this task is none of the answers"):
        model.choose(batch, [[4], []])


def test_losses_are_binary_or_exclusive(section: dict[str, Any], make_batch: Any) -> None:
    model = model_of(section)
    rows = (Target("red", 0.3), Target("no", 1.0)), (Target("unheard of", 0.9),)
    batch = dataclasses.replace(batch_of(model, make_batch, "vqa", *rows), denominator=5.0, loss_weight=0.5)
    logits = model.logits(batch)[:, 0, :3]
    wanted = nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor([[0, 1, 0.3], [0, 0, 0]]), reduction="sum"
    )
    torch.testing.assert_close(model(batch), wanted / 5 * 0.5)

    batch = batch_of(model, make_batch, "coco", (Target("false", 0.5),), (Target("unheard of"),))
    logits = model.logits(batch)[:, 0, 4:6]
    torch.testing.assert_close(model(batch), -0.5 * logits.log_softmax(-1)[0, 1] / 2)


@pytest.mark.parametrize("task", ["vqa", "coco"])
def test_filler_rows_count_for_nothing(task: str, section: dict[str, Any], make_batch: Any) -> None:
    model = model_of(section)
    batch = batch_of(model, make_batch, task, (Target(OF_TASK[task][0]),))
    filler = dataclasses.replace(
        batch, target_ids=torch.full_like(batch.target_ids, -100), target_weights=torch.zeros(1),
        answer_scores=torch.full_like(batch.answer_scores, -1),
    )  # fmt: skip
    loss = model(filler)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_head_is_trained_and_counts_as_new(section: dict[str, Any]) -> None:
    model = model_of(section, name="lora", rank=2, train_visual=False)
    heads = {n for n in model.trainable() if n.startswith("backbone.head.")}
    assert len(heads) == 8 and heads < model.added()
    assert not any(s.path.startswith("head.") for s in model.plan.biases)
    probe = model_of(section, name="probe")
    assert {n for n in probe.trainable() if not n.startswith("backbone.head.")} == set()


def test_what_cannot_be_built_is_said(section: dict[str, Any]) -> None:
    for change, words in (
        ({"num_answers": 0}, r"'backbone\.num_answers'.*3129"),
        ({"answers": OF_TASK, "num_answers": 5}, "holds 6 answers, 'backbone.num_answers' is 5"),
        ({"visual": ["grid", "frame"]}, "clip_vil reads pictures; for tasks on videos"),
        ({"preset": "bas"}, "did you mean 'base'"),
    ):
        with pytest.raises(ConfigError, match=words):
            ClipVil.build(parse_section(ClipVilConfig, {**section, **change}), meta=True)


SIZES = {"vocab_size": 60, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}


def public(kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """Save a checkpoint of another class of transformers; its tensors as its base model names them."""
    torch.manual_seed(1)
    depth = {"num_hidden_layers": 2, "max_position_embeddings": 40}
    if kind == "masked":  # heads that are not used, and no pooler
        model = BertForMaskedLM(BertConfig(**SIZES, **depth))
        model.save_pretrained(folder)
        return model.bert.state_dict()
    model = {
        "bert": lambda: BertModel(BertConfig(**SIZES, **depth)),
        "visual_bert": lambda: VisualBertModel(VisualBertConfig(**SIZES, **depth, visual_embedding_dim=8)),
        "lxmert": lambda: LxmertModel(
            LxmertConfig(**SIZES, max_position_embeddings=40, l_layers=2, x_layers=1, r_layers=1)
        ),
    }[kind]()
    model.save_pretrained(folder)
    return model.state_dict()


@pytest.mark.parametrize(
    ("kind", "unused"),
    [
        ("bert", ""),
        ("masked", "cls.predictions"),
        ("visual_bert", "embeddings.visual_"),
        ("lxmert", "encoder.r_layers.0"),
    ],
)
def test_public_weights(
    kind: str, unused: str, section: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = public(kind, tmp_path)
    config = parse_section(ClipVilConfig, {**section, "weights": str(tmp_path), "text": {}})
    with caplog.at_level(logging.INFO, logger="mtvl.backbones.clip_vil"):
        model = ClipVil.build(config)
    assert all(torch.equal(v, state[n]) for n, v in model.bert.state_dict().items())
    has_pooler = kind != "masked"
    assert torch.equal(model.head.pool.weight, state["pooler.dense.weight"]) if has_pooler else True
    said = caplog.text
    missing, _, unexpected = said.partition("unexpected, not used: ")
    assert "head.out, " in missing and "visual.rows" in missing
    assert ("head.pool" in missing) != has_pooler
    assert unused in unexpected and ("none" in unexpected) == (not unused)


def test_weights_that_do_not_fit_are_refused(section: dict[str, Any], tmp_path: Path) -> None:
    public("bert", tmp_path)
    base = {**section, "weights": str(tmp_path)}
    with pytest.raises(CheckpointError, match=r"of other shapes \['bert\.embeddings\.position_embeddings\.weight"):
        ClipVil.build(parse_section(ClipVilConfig, {**base, "text": {"max_position_embeddings": 41}}))
    with pytest.raises(CheckpointError, match=r"missing \['bert\.encoder\.layer\.2"):
        ClipVil.build(parse_section(ClipVilConfig, {**base, "text": {"num_hidden_layers": 3}}))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="an encoder of the type 'gpt2'; clip_vil reads bert, visual_bert, lxmert"):
        ClipVil.build(parse_section(ClipVilConfig, base))


def test_the_tokenizer_wraps_as_bert_does(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "?"]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = load_bert_tokenizer(str(tmp_path / "bert"))
    ids = tokenizer.encode("What is it?")
    assert ids == [5, 6, 7, 8] and tokenizer.wrap(ids) == [2, 5, 6, 7, 8, 3]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.decode([2, 5, 6, 3])) == (0, 3, "what is")
    bundled = load_bert_tokenizer(str(BUNDLED / "tiny"))
    assert bundled.wrap([7]) == [0, 7, 2] and bundled.pad_id == 1


def test_a_trained_model_is_a_backbone_for_other_answers(
    section: dict[str, Any], tmp_path: Path, make_batch: Any
) -> None:
    """Another list starts with a new last layer; everything else is what was written."""
    tiny = {**section, "tokenizer": "tiny", "text": {**section["text"], "vocab_size": 2000}}
    config = RunConfig(
        tasks=tuple(OF_TASK), backbone={**tiny, "answers": OF_TASK, "num_answers": 8}, petl={"name": "full"}
    )
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    write_bundle(tmp_path / "bundle", model, config)
    start = {"name": "clip_vil", "weights": str(tmp_path / "bundle"), "visual_tokens": 9, "num_answers": 5}
    again = ClipVil.build(parse_section(ClipVilConfig, start))
    own, state = again.state_dict(), model.backbone.state_dict()
    new = {n for n in own if own[n].shape != state[n].shape or not torch.equal(own[n], state[n])}
    assert new == {"head.out.weight", "head.out.bias"}
    assert again.tokenizer().encode("what is it?") == model.backbone.tokenizer().encode("what is it?")
