"""Checker of the family "blip": towers, heads, losses, gradients, teacher, queue, searches, rankings and re-ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mtvl.backbones.blip import Blip, BlipBackbone
from mtvl.backbones.blip.backbone import Memory
from mtvl.backbones.blip.keys import to_original
from mtvl.backbones.blip.loading import interpolate_positions
from mtvl.metrics.retrieval import rank_metrics, ranks_of_truth
from mtvl.steps.answering import answer_step, caption_step, rank_answers
from mtvl.steps.answering import compare_step as compare_step_of_two
from mtvl.steps.pretraining import pretraining_step
from mtvl.steps.reranking import rerank
from mtvl.steps.retrieval import Pairs, RetrievalStep
from parity.blip_parts import (
    FORWARD,
    blocks_of,
    build,
    compare,
    compare_gradients,
    compare_layers,
    compare_step,
    compare_targets,
    layers_of,
    make_step,
    outputs_of,
    retrieval_options,
)
from parity.blip_searches import check_searches, recorded_prompt
from parity.report import Case, Report, Tolerance, check_kind

PERCENT = Tolerance(atol=1e-10)


def check(case: Case, report: Report) -> None:
    """Compare every quantity that the case records."""
    check_kind(case, report, {
        "retrieval": check_retrieval, "retrieval_two_ranks": check_two_ranks, "pretrain": check_retrieval,
        "caption": check_caption, "vqa": check_vqa, "nlvr2": check_nlvr2, "pos_embed": check_positions,
        "retrieval_metrics": check_metrics,
    })  # fmt: skip


# ---- kinds -------------------------------------------------------------------------------------------------------


def check_retrieval(case: Case, report: Report) -> None:
    """A training step of retrieval or of pre-training, and the evaluation where it was recorded."""
    model = build(case, report)
    step = make_step(case, model, report, retrieval_options(case))
    inputs = case.under("input/")
    batch = (inputs["image"], inputs["text_ids"], inputs["text_mask"].bool())
    ids = inputs.get("idx", torch.arange(len(batch[0])))
    layers = blocks_of(model) | {f"text_layer_{i}": b for i, b in enumerate(model.text.layers)}
    negatives = (inputs["neg_image_for_text"], inputs["neg_text_for_image"])
    alpha = case.facts["alpha"]
    with outputs_of(layers) as runs:
        if case.facts["kind"] == "pretrain":
            all_three = pretraining_step(model, step, *batch, alpha, negatives=negatives)
            losses, total = all_three.pairs, all_three.total
            compare(case, report, {"loss_lm": all_three.captions.loss})
        else:
            losses = step(model, *batch, ids, alpha, negatives=negatives)
            total = losses.total
    model.zero_grad()
    total.backward()
    compare(case, report, {"loss_total": total})
    compare_step(case, report, losses)
    compare_layers(case, report, runs)
    compare_teacher(case, report, model, step, batch, ids)
    compare_gradients(case, report, model)
    if "eval_image" in inputs:
        check_evaluation(case, report, model.eval(), inputs)


def compare_teacher(
    case: Case, report: Report, model: Blip, step: RetrievalStep, batch: tuple[torch.Tensor, ...], ids: torch.Tensor
) -> None:
    """The teacher's features and tokens, and queue and averages after the step."""
    image, text = step.teach(model, *batch)
    tokens = step.teacher.run(model, model.see, batch[0])
    compare(case, report, {"image_feat_m": image, "text_feat_m": text, "image_embeds_m": tokens.flatten(0, 1)})
    queue = step.queue
    pointer = queue.place.reshape(1)
    compare(case, report, {
        "after/image_queue": queue.image.T, "after/text_queue": queue.text.T, "after/idx_queue": queue.ids[None],
        "after/ptr_queue": pointer, "after/queue_ptr": pointer,
    })  # fmt: skip
    compare_averages(case, report, model, step)
    compare_targets(case, report, ids)


def compare_averages(case: Case, report: Report, model: Blip, step: RetrievalStep) -> None:
    """The teacher's weights after the step."""
    averages = {**{n: p.detach() for n, p in model.named_parameters()}, **step.teacher.averages()}
    teacher = to_original(averages, model.vision_shape.patch)
    for name in [n for n in case.tensors if n.startswith("expect/after/") and "_m." in n]:
        ours = name.removeprefix("expect/after/").replace("_m.", ".", 1)
        if ours in teacher:
            compare(case, report, {name.removeprefix("expect/"): teacher[ours]})


@torch.no_grad()
def check_evaluation(case: Case, report: Report, model: Blip, inputs: Mapping[str, torch.Tensor]) -> None:
    """All pairs by cosine and by the matching head, the re-ranked scores, and the head with [CLS] in place of [ENC]."""
    tokens = model.see(inputs["eval_image"])
    texts = (inputs["eval_text_ids"], inputs["eval_text_mask"].bool())
    image, text = model.image_features(tokens), model.text_features(model.read(*texts))
    sims = image @ text.T
    pictures, captions = torch.meshgrid(torch.arange(len(tokens)), torch.arange(len(texts[0])), indexing="ij")
    pictures, captions = pictures.flatten(), captions.flatten()
    states = model.fuse(texts[0][captions], texts[1][captions], tokens[pictures])
    top = case.facts["k_test"]
    scores = {name: rerank(model, tokens.__getitem__, texts, sims, top, by_text=name == "t2i", chunk=7)
              for name in ("i2t", "t2i")}  # fmt: skip
    rows = min(len(tokens), len(texts[0]))
    plain = model.text(texts[0][:rows], texts[1][:rows], tokens[:rows].flatten(1, 2))
    compare(case, report, {
        "eval_image_feat": image, "eval_text_feat": text, "eval_sims": sims,
        "eval_itm_logits_enc_first": model.match(states[:, 0]).view(*sims.shape, 2),
        "eval_score_i2t": scores["i2t"], "eval_score_t2i": scores["t2i"],
        "blip_itm_as_coded_itm": model.match(plain[:, 0]), "blip_itm_as_coded_itc": sims[:rows, :rows],
    })  # fmt: skip


def check_two_ranks(case: Case, report: Report) -> None:
    """Two ranks in one process: each its own columns, negatives from both, gradients averaged over ranks."""
    model = build(case, report)
    step = make_step(case, model, report, retrieval_options(case))
    inputs, ranks = case.under("input/"), range(case.facts["world_size"])
    step.teacher.update(model)
    batches = [
        (inputs[f"rank{r}/image"], inputs[f"rank{r}/text_ids"], inputs[f"rank{r}/text_mask"].bool()) for r in ranks
    ]
    own = [step.look(model, *batches[r], inputs[f"rank{r}/idx"]) for r in ranks]
    taught = [step.teach(model, *batches[r]) for r in ranks]
    everyone = Pairs(**{k: torch.cat([getattr(p, k) for p in own]) for k in vars(own[0])})
    model.zero_grad()
    total = torch.zeros(())
    for r in ranks:
        negatives = (inputs[f"rank{r}/neg_image_for_text"], inputs[f"rank{r}/neg_text_for_image"])
        pool = everyone if case.facts["negative_all_rank"] else own[r]
        losses = step.losses(model, own[r], taught[r], pool, case.facts["alpha"], negatives)
        compare_step(case, report, losses, f"expect/rank{r}/")
        compare(case, report, {f"rank{r}/loss_total": losses.total, f"rank{r}/image_feat_m": taught[r][0],
                               f"rank{r}/text_feat_m": taught[r][1]})  # fmt: skip
        compare_targets(case, report, inputs[f"rank{r}/idx"], f"rank{r}/")
        total = total + losses.total / len(ranks)
    total.backward()
    for r in ranks:  # in the order of ranks, as one gathered batch is written
        step.queue.push(*taught[r], inputs[f"rank{r}/idx"])
    queue = step.queue
    compare(case, report, {
        "after/image_queue": queue.image.T, "after/text_queue": queue.text.T, "after/idx_queue": queue.ids[None],
        "after/ptr_queue": queue.place.reshape(1),
    })  # fmt: skip
    compare_averages(case, report, model, step)
    compare_gradients(case, report, model)


def check_caption(case: Case, report: Report) -> None:
    """Loss with the prompt masked, gradients, and searches behind a prompt."""
    model = build(case, report)
    inputs = case.under("input/")
    mask = inputs["text_mask"].bool()
    with outputs_of(layers_of(model)) as runs:
        out = caption_step(model, inputs["image"], inputs["text_ids"], mask, case.facts["prompt_length"])
    model.zero_grad()
    out.loss.backward()
    compare(case, report, {
        "loss": out.loss, "logits": out.logits, "labels": out.details["labels"],
        "image_embeds": out.details["tokens"].flatten(0, 1), **{name: outputs[0] for name, outputs in runs.items()},
    })  # fmt: skip
    compare_gradients(case, report, model)
    check_searches(case, report, model, out.details["tokens"].detach().flatten(1, 2), recorded_prompt(case))


def check_vqa(case: Case, report: Report) -> None:
    """Weighted answers, gradients, ranking and searches that see padded places of the question, as recorded."""
    model = build(case, report)
    states = check_answers(case, report, model)
    model.zero_grad()
    states.loss.backward()
    compare_gradients(case, report, model)
    check_searches(case, report, model, states.details["states"].detach())


def check_answers(case: Case, report: Report, model: BlipBackbone) -> Any:
    """Losses of weighted answers and the ranking of a list; returns what the step gave."""
    inputs = case.under("input/")
    question = (inputs["question_ids"], inputs["question_mask"].bool())
    answers = (inputs["answer_ids"], inputs["answer_mask"].bool())
    with outputs_of(layers_of(model)) as runs:
        out = answer_step(
            model, inputs["image"], question, answers, inputs["answer_weights"], inputs["answers_per_question"]
        )
    compare(case, report, {
        "loss": out.loss, "answer_loss": out.details["losses"], "answer_logits": out.logits,
        "image_embeds": out.details["tokens"].flatten(0, 1), "question_states": out.details["states"],
        **{name: outputs[0] for name, outputs in runs.items()},
    })  # fmt: skip
    listed = [row[given][1:].tolist() for row, given in zip(
        inputs["answer_list_ids"], inputs["answer_list_mask"].bool(), strict=True
    )]  # fmt: skip  # the first token is the decoder's own start
    memory = Memory(out.details["states"].detach(), question[1])
    index, scores, chances = rank_answers(
        model.decode, memory, listed, case.facts["k_test"], chunk=4, pass_common=False
    )
    outside = torch.full_like(chances, -1e9)
    compare(case, report, {
        "rank_first_token_prob": chances, "rank_score_by_answer": outside.scatter(1, index, scores),
        "rank_topk_member": torch.zeros_like(chances, dtype=torch.long).scatter(1, index, 1),
        "rank_answer": index.gather(1, scores.argmax(1, keepdim=True))[:, 0],
    })  # fmt: skip
    return out


def check_nlvr2(case: Case, report: Report) -> None:
    """Two pictures, both ways of merging branches, loss and gradients."""
    model = build(case, report)
    inputs = case.under("input/")
    pixels = torch.stack([inputs["image0"], inputs["image1"]], 1)
    layers = {f"layer_{i}": layer for i, layer in enumerate(model.text.layers)}
    with outputs_of({**layers, **blocks_of(model)}) as runs:
        out = compare_pictures(model, pixels, inputs)
    for name in blocks_of(model):  # all first pictures come before all second ones in the recording
        runs[name][0] = runs[name][0].unflatten(0, (len(pixels), 2)).transpose(0, 1).flatten(0, 1)
    model.zero_grad()
    out.loss.backward()
    compare(case, report, {
        "loss": out.loss, "logits": out.logits, "text_hidden": out.details["states"],
        "image_embeds": out.details["tokens"].transpose(0, 1).flatten(0, 1),
        **{name: outputs[0] for name, outputs in runs.items()},
    })  # fmt: skip
    compare_gradients(case, report, model)


def compare_pictures(model: Blip, pixels: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> Any:
    """The step that compares two pictures."""
    return compare_step_of_two(model, pixels, inputs["text_ids"], inputs["text_mask"].bool(), inputs["targets"])


def check_positions(case: Case, report: Report) -> None:
    """Position tables resized up, down and not at all."""
    for name, table in case.under("input/").items():
        expected = case.get(f"expect/{name}")
        if expected is None:
            raise ValueError(f"no result is recorded for {name}")
        report.close(name, interpolate_positions(table, expected.shape[1]), expected, FORWARD)


def check_metrics(case: Case, report: Report) -> None:
    """Recalls, means and ranks of stored score matrices, of pictures and of videos."""
    facts = case.facts
    matrix = {name: np.array(facts[f"scores_{name}"]) for name in ("i2t", "t2i")}
    owner = np.array(facts["txt2img"])
    own = owner[:, None] == np.arange(len(matrix["i2t"]))[None, :]
    ranks = {"txt": ranks_of_truth(matrix["i2t"], own.T), "img": ranks_of_truth(matrix["t2i"], own)}
    zero_based = {way: (found - 1).astype(int).tolist() for way, found in ranks.items()}
    expected = facts["expect_zero_based_ranks"]
    report.equal(
        "ranks", [zero_based["txt"], zero_based["img"]], [expected["image_to_text"], expected["text_to_image"]]
    )
    compare_recalls(report, "", ranks, facts["expect"])
    medians = {"image_to_text": float(np.median(ranks["txt"])), "text_to_image": float(np.median(ranks["img"]))}
    if "expect_median_rank" in facts:
        wanted = {k: v for k, v in facts["expect_median_rank"].items() if k != "note"}
        report.mapping("median ranks", medians, wanted)
    if "video_protocol" in facts:
        check_video_metrics(report, matrix, facts["video_protocol"])


def check_video_metrics(report: Report, matrix: Mapping[str, np.ndarray], protocol: Mapping[str, Any]) -> None:
    """The same of videos, of whose captions one in `caption_stride` counts."""
    stride, wanted = protocol["caption_stride"], dict(protocol["expect"])
    truth = np.eye(len(matrix["i2t"]), dtype=bool)
    video = {
        "txt": ranks_of_truth(matrix["i2t"][:, ::stride], truth),
        "vid": ranks_of_truth(matrix["t2i"][::stride], truth),
    }
    report.equal("video median rank", float(np.median(video["vid"])), wanted.pop("vid_mdR"))
    compare_recalls(report, "video/", video, wanted)


def compare_recalls(report: Report, label: str, ranks: Mapping[str, np.ndarray], expected: Mapping[str, float]) -> None:
    """Recalls of both directions and their means."""
    found: dict[str, float] = {}
    for way, values in ranks.items():
        recalls = [rank_metrics(values)[f"R{k}"] for k in (1, 5, 10)]
        found |= {f"{way}_r{k}": r for k, r in zip((1, 5, 10), recalls, strict=True)}
        found[f"{way}_r_mean"] = sum(recalls) / 3
    found["r_mean"] = sum(found[f"{way}_r_mean"] for way in ranks) / 2
    report.names(f"{label}recalls", found, expected)
    for name, value in expected.items():
        report.close(
            label + name,
            torch.tensor(found[name], dtype=torch.float64),
            torch.tensor(value, dtype=torch.float64),
            PERCENT,
        )
