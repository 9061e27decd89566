"""Rows of the official files of VQA v2, GQA, NLVR2 and COCO (Karpathy) for the scenes of one split.

Each function is pure: its rows depend on the scenes and the random generator alone. The field `held_out`, which the
official files do not have, marks rows that touch a composition absent from training.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mtvl.data.miniworld.balance import ask_all
from mtvl.data.miniworld.captions import captions
from mtvl.data.miniworld.gqa import GqaAsked
from mtvl.data.miniworld.gqa_forms import GQA_FORMS, entailments
from mtvl.data.miniworld.questions import VQA_FORMS, YES_NO, annotators, answer_type, most_frequent, question_type
from mtvl.data.miniworld.scene import Scene
from mtvl.data.miniworld.statements import balanced_statements

Row = dict[str, Any]

_FIRST_ID = {"train": 1, "val": 200_001, "test": 400_001}
PICTURES_A_SET = 8  # of NLVR2: four pairs
STATEMENTS_A_SET = 2
_ENTAILED = 2  # questions that are added to GQA's "all" files for one balanced question


def image_id(split: str, index: int) -> int:
    """The id of picture `index` of `split`, unique over splits."""
    return _FIRST_ID[split] + index


def image_name(split: str, index: int) -> str:
    """The file name of a picture in images/{split}2014."""
    return f"COCO_{split}2014_{image_id(split, index):012d}.png"


def vqa_rows(scenes: Sequence[Scene], split: str, number: int, rng: random.Random) -> tuple[Row, Row]:
    """The questions file and the annotations file of VQA v2."""
    head = {
        "info": {
            "description": "miniworld in the format of VQA v2.0", "url": "", "version": "2.0", "year": 2026,
            "contributor": "mtvl", "date_created": "2026-01-01 00:00:00",
        },
        "data_type": "mscoco", "data_subtype": f"{split}2014",
        "license": {"url": "https://creativecommons.org/publicdomain/zero/1.0/", "name": "CC0 1.0"},
    }  # fmt: skip
    questions, annotations = [], []
    per_image: Counter[int] = Counter()
    for index, asked in ask_all(scenes, number, VQA_FORMS, rng, split == "test"):
        image = image_id(split, index)
        question_id = image * 1000 + per_image[image]
        per_image[image] += 1
        questions.append({"image_id": image, "question": asked.text, "question_id": question_id})
        answers = annotators(asked.answer, rng)
        annotations.append(
            {
                "question_type": question_type(asked.text), "multiple_choice_answer": most_frequent(answers),
                "answers": answers, "image_id": image, "answer_type": answer_type(asked.answer),
                "question_id": question_id, "held_out": asked.is_held_out,
            }
        )  # fmt: skip
    return {**head, "task_type": "Open-Ended", "questions": questions}, {**head, "annotations": annotations}


def gqa_rows(
    scenes: Sequence[Scene], split: str, number: int, rng: random.Random, with_entailed: bool
) -> dict[str, Row]:
    """All questions of GQA by id: `number` balanced ones and, `with_entailed`, questions that their answers decide.

    Without these the lists of entailed ids are empty rather than pointing to questions that do not exist.
    """
    rows: dict[str, Row] = {}
    id_of: dict[tuple[int, str], str] = {}
    per_image: Counter[int] = Counter()

    def add(index: int, asked: GqaAsked, is_balanced: bool) -> str:
        known = id_of.get((index, asked.text))
        if known:
            return known
        key = id_of[index, asked.text] = f"{image_id(split, index)}{per_image[index]:03d}"
        per_image[index] += 1
        rows[key] = _gqa_row(f"n{image_id(split, index)}", key, asked, is_balanced)
        return key

    balanced = ask_all(scenes, number, GQA_FORMS, rng, split == "test")
    for index, asked in balanced:  # first all balanced ones: an entailed question may turn out to be one of them
        assert isinstance(asked, GqaAsked)
        add(index, asked, True)
    for index, asked in balanced if with_entailed else ():
        assert isinstance(asked, GqaAsked)
        key = id_of[index, asked.text]
        followers = entailments(scenes[index], asked, rng, split == "test")
        for follower, is_same in rng.sample(followers, min(_ENTAILED, len(followers))):
            other = add(index, follower, False)
            _insert(rows[key]["entailed"], other)
            if is_same:
                _insert(rows[key]["equivalent"], other)
                _insert(rows[other]["equivalent"], key)
                _insert(rows[other]["entailed"], key)
    return rows


def _insert(ids: list[str], key: str) -> None:
    if key not in ids:
        ids.append(key)


def _gqa_row(image: str, key: str, asked: GqaAsked, is_balanced: bool) -> Row:
    steps = [{"operation": op, "dependencies": list(deps), "argument": arg} for op, deps, arg in asked.program]
    program = "->".join(f"{op}: {arg}" + (f" {list(deps)}" if deps else "") for op, deps, arg in asked.program)
    main = asked.kinds[0].shape or next(iter(asked.kinds[0].attributes.values()))
    return {
        "semantic": steps, "entailed": [], "equivalent": [key], "question": asked.text, "imageId": image,
        "isBalanced": is_balanced,
        "groups": {"global": asked.group or None, "local": f"{len(steps):02d}-{main}_{asked.form.replace(' ', '-')}"},
        "answer": asked.answer, "semanticStr": program, "annotations": _gqa_annotations(asked),
        "types": {"detailed": asked.detailed, "semantic": asked.semantic, "structural": asked.structural},
        "fullAnswer": asked.full_answer, "held_out": asked.is_held_out,
    }  # fmt: skip


def _gqa_annotations(asked: GqaAsked) -> Row:
    """Spans of words -> object ids, for the question and the full answer."""
    places: dict[str, dict[str, str]] = {"answer": {}, "question": {}, "fullAnswer": {}}
    for kind, number in asked.named:
        for field, text in (("question", asked.text), ("fullAnswer", asked.full_answer)):
            words, wanted = re.findall(r"[a-z]+", text), kind.words.split()
            for start in range(len(words) - len(wanted) + 1):
                if words[start : start + len(wanted)] == wanted:
                    end = start + len(wanted)
                    places[field][str(start) if len(wanted) == 1 else f"{start}:{end}"] = str(number)
                    break
    if asked.answer_id is not None:
        places["answer"]["0"] = str(asked.answer_id)
    return places


def gqa_choices(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Answers that fit the form of a question (valid) and that its own words leave open (plausible)."""
    domains: dict[str, set[str]] = {}
    for row in rows.values():
        if row["types"]["structural"] == "query":
            domains.setdefault(row["groups"]["global"], set()).add(row["answer"])
    choices = {}
    for key, row in rows.items():
        operation, argument = row["semantic"][-1]["operation"], row["semantic"][-1]["argument"]
        if row["types"]["structural"] == "query":
            valid = plausible = sorted(domains[row["groups"]["global"]])
        elif operation.startswith("choose"):
            plausible = _offered(argument)
            domain = {"choose name": "shape"}.get(operation, operation.removeprefix("choose "))
            valid = sorted({*plausible, *domains.get(domain, ())})
        else:
            valid = plausible = list(YES_NO)
        choices[key] = {"valid": valid, "plausible": plausible}
    return choices


def _offered(argument: str) -> list[str]:
    """ "red|blue" -> red, blue; "star,to the left of|to the right of,s (2)" -> left, right."""
    if "," in argument:
        argument = argument.split(",")[1]
    return [part.replace("to the ", "").split()[0] for part in argument.split("|")]


def nlvr2_rows(scenes: Sequence[Scene], split: str, sets: int, rng: random.Random, with_held_out: bool) -> list[Row]:
    """Statements over `sets` sets of four pairs; `split` is NLVR2's own name (train, dev, test1).

    Every statement is true for two pairs of its set and false for two.
    """
    rows = []
    forms: Counter[str] = Counter()
    for number in range(sets):
        block = scenes[number * PICTURES_A_SET : (number + 1) * PICTURES_A_SET]
        pairs = [(block[i], block[i + 1]) for i in range(0, PICTURES_A_SET, 2)]
        found = balanced_statements(pairs, STATEMENTS_A_SET, rng, with_held_out, forms)
        for sentence, (statement, truths) in enumerate(found):
            writer = rng.randrange(10, 100)
            for pair, truth in enumerate(truths):
                name = f"{split}-{number}-{pair}"
                rows.append(
                    {
                        "validation": {str(rng.randrange(100, 200)): str(truth)}, "sentence": statement.text,
                        "left_url": f"images/{split}/{name}-img0.png", "writer": str(writer), "label": str(truth),
                        "right_url": f"images/{split}/{name}-img1.png", "synset": statement.kinds[0].shape or "object",
                        "query": statement.form, "identifier": f"{name}-{sentence}", "extra_validations": {},
                        "held_out": statement.is_held_out(pairs[pair]),
                    }
                )  # fmt: skip
    return rows


def coco_images(
    scenes: Sequence[Scene], split: str, parts: Mapping[str, int], first_number: int, rng: random.Random
) -> list[Row]:
    """Entries of Karpathy's file; `parts` says how many pictures, in order, fall to each of his splits."""
    rows = []
    names = [name for name, times in parts.items() for _ in range(times)]
    for index, part in enumerate(names):
        number = first_number + index
        sentences = [
            {"tokens": re.findall(r"[a-z]+", text), "raw": text, "imgid": number, "sentid": number * 5 + i}
            for i, text in enumerate(captions(scenes[index], rng))
        ]
        rows.append(
            {
                "filepath": f"{split}2014", "sentids": [s["sentid"] for s in sentences],
                "filename": image_name(split, index), "imgid": number, "split": part, "sentences": sentences,
                "cocoid": image_id(split, index), "held_out": any(t.is_held_out for t in scenes[index].objects),
            }
        )  # fmt: skip
    return rows
