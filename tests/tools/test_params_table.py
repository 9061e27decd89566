"""The published counts, from configurations alone."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import params_table  # noqa: E402


def printed(*arguments: str) -> str:
    """What the tool writes to stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert params_table.main(list(arguments)) == 0
    return out.getvalue()


EXPECTED = {
    ("full", "image"): (141_156_864, 141_156_864),
    ("adapter", "single, image"): (6_081_600, 145_606_464),
    ("adapter", "half-shared up, image"): (12_725_760, 152_250_624),
    ("adapter", "half-shared down, image"): (12_786_240, 152_311_104),
    ("adapter", "multiple, image"): (19_430_400, 158_955_264),
    ("hyperformer", "image"): (8_579_088, 148_103_952),
    ("compacter", "single, image"): (3_870_240, 143_395_104),
    ("compacter", "multiple, image"): (10_584_960, 150_109_824),
    ("lora", "single, image"): (8_786_688, 148_234_752),
    ("lora", "multiple, image"): (30_020_352, 169_468_416),
    ("prompt", "single, image"): (2_843_936, 142_417_952),
    ("prompt", "multiple, image"): (6_627_200, 146_201_216),
    ("projection", "alone, image"): (1_582_848, 141_156_864),
    ("projection", "with norms, image"): (1_632_000, 141_156_864),
    ("lora", "single, video"): (7_607_040, 147_055_104),
    ("prompt", "single, video"): (1_664_288, 141_238_304),
    ("full", "video"): (139_977_216, 139_977_216),
    ("adapter", "single, video"): (4_901_952, 144_426_816),
    ("adapter", "single, image and video"): (6_477_120, 146_001_984),
}


def residual_stage(width: int, d_in: int, blocks: int) -> int:
    """Convolutions of 1, 3 and 1 and their norms, four times as wide at the end; a shortcut in the first block."""
    others = 9 * width**2 + 4 * width**2 + 2 * width + 2 * width + 8 * width
    return blocks * others + (d_in + (blocks - 1) * 4 * width) * width + d_in * 4 * width + 8 * width


# CLIP's RN101 without attention pooling: three convolutions at the start, then the stages
RN101 = (
    27 * 32
    + 9 * 32 * 32
    + 9 * 32 * 64
    + 2 * (32 + 32 + 64)
    + sum(residual_stage(64 * 2**i, 64 if i == 0 else 128 * 2**i, n) for i, n in enumerate((3, 4, 23, 3)))
)

VISUAL, NORMS, WIDTH, FFN = 1_581_312, 62 * 768, 768, 3_072
TOTAL = 224_540_160
EXPECTED_T5 = {  # added and unfrozen parameters; the first three rows and the total are the published model's
    ("full", "image"): TOTAL,
    ("adapter", "single, paper_compat"): 19_333_632,
    ("projection", "alone, image"): VISUAL,
    ("adapter", "single, image"): 19_333_632 + NORMS,
    ("adapter", "half-shared up, image"): VISUAL + NORMS + 60 * (4 * (WIDTH * 192 + 192) + 192 * WIDTH + WIDTH),
    ("adapter", "multiple, image"): VISUAL + NORMS + 4 * 60 * 295_872,
    ("hyperformer", "image"): VISUAL + NORMS + 4 * 512
    + 2 * (12 * 512 + 1024 * 128 + 128 + 128 * 8 + 8 + 16) + 5 * 9 * (2 * 192 * WIDTH + 192 + WIDTH),
    ("compacter", "single, image"): VISUAL + NORMS + 60 * (2 * 8 + WIDTH * 192 + 192 + WIDTH),
    ("lora", "single, image"): VISUAL + 36 * 2 * 2 * 128 * WIDTH,
    ("prompt", "single, image"): VISUAL + 1_261_088,
    ("adapter_prompt", "shared adapter, image"): 19_333_632 + NORMS + 4 * 1_261_088,
    ("projection", "with norms, image"): VISUAL + NORMS,
    ("ia3", "single, image"): VISUAL + 36 * 2 * WIDTH + 24 * FFN,
    ("prefix", "single, image"): VISUAL + 36 * 2 * 20 * WIDTH,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return json.loads(printed("--json"))


def test_integers_of_the_published_rows(rows) -> None:
    found = {
        (r["method"], r["variant"]): (r["trainable"], r["total"]) for r in rows if r["backbone"] == "clip_bart_base"
    }
    # rows without a published count, in closed form
    visual, norms, width = 1_582_848, 49_152, 768
    rest = {
        ("bitfit", "image"): visual
        + 6 * (4 * width + 3072 + 3 * width)
        + 6 * (8 * width + 3072 + 4 * width)
        + 2 * width,
        ("parallel_adapter", "single, image"): visual + norms + 12 * 148_320,
        ("ia3", "single, image"): visual + 18 * 2 * width + 12 * 3072,
        ("prefix", "single, image"): visual + 18 * 2 * 20 * width,
        ("adapter_prompt", "shared adapter, image"): visual + norms + 30 * 148_320 + 4 * 1_261_088,
        ("full", "tower trained, image"): 141_156_864 + RN101,
        ("adapter", "single, tower trained"): 6_081_600 + RN101,
        ("compacter", "low rank, single, image"): visual + norms + 4**3 + 30 * (2 * (width + 96) + width + 96),
    }
    assert {key: found[key][0] for key in found if key not in EXPECTED} == rest
    assert {key: value for key, value in found.items() if key in EXPECTED} == EXPECTED
    assert found["adapter", "single, tower trained"][1] == 145_606_464 + RN101
    assert found["full", "tower trained, image"][0] == found["full", "tower trained, image"][1]


def test_integers_of_clip_t5_and_of_the_larger_siblings(rows) -> None:
    found = {(r["method"], r["variant"]): r for r in rows if r["backbone"] == "clip_t5_base"}
    assert {key: row["trainable"] for key, row in found.items()} == EXPECTED_T5
    frozen = ("full", "projection")
    assert {r["total"] for key, r in found.items() if key[0] in frozen} == {TOTAL}
    assert found["adapter", "single, paper_compat"]["total"] == 242_292_480
    assert found["adapter", "single, image"]["percent"] == 7.9991
    # BART-large 406,291,456 and T5-large 737,668,096 as published; 200 and 72 added rows; the visual embedding
    width = 1024
    visual = {"bart": 2048 * width + 13 * width, "t5": 2048 * width + 11 * width}
    large = {
        (r["backbone"], r["method"]): (r["trainable"], r["total"]) for r in rows if r["backbone"].endswith("large")
    }
    for family, plain, added, places, bottleneck, norms in (
        ("bart", 406_291_456, 200, 60, 128, 62 * 2 * width), ("t5", 737_668_096, 72, 120, 256, 122 * width),
    ):  # fmt: skip
        total = plain + added * width + visual[family]
        adapters = places * (2 * width * bottleneck + width + bottleneck)
        assert large[f"clip_{family}_large", "full"] == (total, total)
        assert large[f"clip_{family}_large", "adapter"] == (adapters + norms + visual[family], total + adapters)


def test_integers_of_clip_vil(rows) -> None:
    found = {
        (r["method"], r["variant"]): (r["trainable"], r["total"]) for r in rows if r["backbone"] == "clip_vil_base"
    }
    width = 768
    bert = 109_482_240 - width * (width + 1)  # BERT-base without its pooler, which is the head's here
    visual = (
        2 * 25 * 2048 + (2048 + 1) * width + 2 * width + 2 * width
    )  # positions, projection, norm, order of pictures
    norms, adapters = 25 * 2 * width, 24 * (2 * width * 192 + 192 + width)
    wanted = {}
    for task, answers in (("vqa", 3129), ("gqa", 1842), ("snli_ve", 3)):
        head = width * (width + 1) + 2 * width * (width + 1) + 4 * width + answers * (2 * width + 1)
        total = bert + visual + head
        wanted["full", task] = (total, total)
        wanted["adapter", f"single, {task}"] = (adapters + norms + visual + head, total + adapters)
        if task == "vqa":
            low_rank = 24 * 2 * 128 * width
            biases = 12 * (4 * width + 3072 + width + 2 * width) + width
            wanted["lora", "single, vqa"] = (low_rank + biases + visual + head, total + low_rank)
            wanted["probe", "vqa"] = (head, total)
    assert found == wanted


# *Source:* the released classes; UniAdapter, tables 1 to 3 (9.5M, 18.9M, 19.0M, 28.4M, 37.8M, 7.1M, 4.7M, 6.3M, 12.6M,
# 0.4M); UniTrans, table 8 (0.18M, 0.28M, 0.21M). The integers are those of the papers' own formulas.
BLIP_TOTALS = {
    ("base", "retrieval, 384 px"): 223_744_258, ("base", "caption, 384 px"): 223_971_644,
    ("base", "vqa, 480 px"): 361_478_972, ("base", "vqa, 384 px"): 361_230_140, ("base", "nlvr2, 384 px"): 259_372_034,
    ("base", "pretrain, 224 px"): 252_441_918, ("base", "joint, 384 px"): 361_230_140 + 395_266,
    ("large", "retrieval, 384 px"): 446_128_642, ("large", "caption, 384 px"): 446_290_492,
    ("large", "vqa, 480 px"): 583_880_764, ("large", "vqa, 384 px"): 583_548_988,
    ("large", "nlvr2, 384 px"): 486_409_474, ("large", "pretrain, 224 px"): 474_729_022,
}  # fmt: skip
LN = 2 * 768
BLIP_TRAINED = {
    "heads": 395_266, "share down, r=512": 18_908_160, "share down, r=128": 4_747_776,
    "share nothing, r=512": 28_357_632, "share nothing, r=128": 7_110_144, "share up, r=512": 18_902_016,
    "share both, r=512": 9_452_544, "vision alone, r=512": 9_452_544, "own query, share nothing, r=512": 37_810_176,
    "last 4 layers, r=512": 6_302_720, "last 8 layers, r=512": 12_605_440,
    "as coded, r=512": 18_926_592 + 12 * LN + 2 * 99_137, "with heads, r=128": 4_747_776 + 395_266,
    "one pair, r=64": 178_176, "a pair for each tower, r=64": 276_480, "frozen pair, r=64": 79_872,
    "with side network, r=64": 206_592, "with side network, r=128": 311_808, "with decoder, r=64": 344_832,
}  # fmt: skip


def test_integers_of_blip(rows) -> None:
    found = {
        (r["backbone"].removeprefix("blip_"), r["method"], r["variant"]): r for r in rows if "blip" in r["backbone"]
    }
    full = {(size, variant): r for (size, method, variant), r in found.items() if method == "full"}
    assert {key: r["total"] for key, r in full.items()} == BLIP_TOTALS
    assert all(r["trainable"] == r["total"] for r in full.values())
    base = {
        v.partition(", ")[2]: r["trainable"]
        for (size, method, v), r in found.items()
        if size == "base" and method != "full"
    }
    assert base == BLIP_TRAINED
    # ViT-L: text and fusion share in 12 layers of 768, each of 24 blocks of 1024 has projections of its own
    text = 12 * (768 * 128 + 128 + 2 * (768 * 128 + 768))
    vision = 24 * (2 * 1024 * 128 + 128 + 1024)
    large = {method: r["trainable"] for (size, method, _), r in found.items() if size == "large" and method != "full"}
    heads = 460_802
    # one A for each width that is read (768, 1024) and one B for each that is written; 24 + 24 + 12 attentions' vectors
    sets = 24 * 2 * (64 + 1024) + 36 * 2 * (64 + 768) + 12 * (64 + 768) + 12 * 2 * 768
    assert large == {"uniadapter": text + vision + heads, "unitrans": 2 * 64 * (768 + 1024) + sets + heads}


def test_rows_have_the_stable_keys_and_round_to_the_papers(rows) -> None:
    for row in rows:
        assert list(row) == ["backbone", "method", "variant", "trainable", "total", "percent", "paper", "note"]
        assert row["percent"] == pytest.approx(100 * row["trainable"] / row["total"], abs=1e-4)
        if row["paper"] is not None:
            assert (round(row["percent"], 2) == row["paper"]) == (row["note"] == ""), row
    assert [
        (r["method"], r["variant"], round(r["paper"] - r["percent"], 2)) for r in rows if r["paper"] and r["note"]
    ] == [("lora", "multiple, image", 0.01)]
    assert len({(r["backbone"], r["method"], r["variant"]) for r in rows}) == len(rows)


def test_the_temperature_is_named_where_a_plan_counts_one_more(rows) -> None:
    """The published 223,744,258 leave the one learned number out."""
    noted = {(r["backbone"], r["variant"]) for r in rows if r["note"] == params_table.TEMPERATURE}
    kinds = {variant.partition(",")[0] for _, variant in noted}
    assert ("blip_base", "retrieval, 384 px") in noted and kinds == {"retrieval", "pretrain", "joint"}
    row = next(r for r in params_table.ROWS if r.variant == "retrieval, 384 px")
    plan = params_table.plan_of(row)
    assert plan.num_total == 223_744_259 and sum(s.kind == "scalar" for s in plan.sites) == 1


def test_the_table_shows_every_row(rows) -> None:
    table = printed()
    assert len(table.splitlines()) == 1 + len(rows)
    assert "6,081,600   145,606,464    4.1767    4.18" in table
