"""The command line: `mtvl VERB`; launch/train.py and launch/evaluate.py are the first two verbs."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from mtvl.config import load_run_config
from mtvl.errors import FULL_DISK, ConfigError, MtvlError, near_names

RECIPES = Path(__file__).resolve().parents[1] / "launch" / "recipes"
DEFAULT_RECIPE = RECIPES / "tiny.yaml"


def _split(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=_split, default=[], help="comma-separated names of files in tasks/")
    parser.add_argument(
        "--recipe", type=Path, default=DEFAULT_RECIPE, help="a complete run; default: a small one for CPUs"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optim.lr=3e-4 petl.share=none")


def train_parser() -> argparse.ArgumentParser:
    """Flags of `train`; a test holds the list."""
    parser = argparse.ArgumentParser(prog="train", description="Train one model on several tasks jointly.")
    _recipe_arguments(parser)
    parser.add_argument(
        "--run", type=Path, default=None, help="run folder; default: runs/RECIPE-TIME, linked as runs/latest"
    )
    parser.add_argument("--resume", default="auto", help="auto | never | a checkpoint folder")
    parser.add_argument("--local_rank", type=int, default=None, help="set by launchers; the environment wins")
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    """Flags of `evaluate`."""
    parser = argparse.ArgumentParser(prog="evaluate", description="Score one shared checkpoint on several tasks.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run folder or an export folder")
    parser.add_argument("--tasks", type=_split, default=[], help="default: the tasks that it was trained on")
    parser.add_argument("--split", default="test", help="train, val, test or another split of the task files")
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="JSON file; default: eval.json in the run folder (eval_SPLIT.json for another split)",
    )
    parser.add_argument("--local_rank", type=int, default=None, help="set by launchers; the environment wins")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=/data evaluate.batch=256")
    return parser


def run_train(arguments: Sequence[str]) -> int:
    """`train`: one model on several tasks, also by `deepspeed launch/train.py`."""
    args = train_parser().parse_intermixed_args(arguments)
    config = load_run_config(args.recipe, args.tasks, args.overrides)
    from mtvl.checkpoint import run_folder  # slow imports only after the recipe has been checked
    from mtvl.engine import start
    from mtvl.train import train

    start(local_rank=args.local_rank)
    return train(config, run_folder(args.run, args.recipe), resume=args.resume).code


def run_evaluate(arguments: Sequence[str]) -> int:
    """`evaluate`: scores of a run or an export on several tasks."""
    args = evaluate_parser().parse_intermixed_args(arguments)
    from mtvl.engine import lost_ranks_named, start
    from mtvl.evaluate import evaluate

    start(local_rank=args.local_rank)
    with lost_ranks_named(lambda: "Start the same command again"):
        evaluate(args.checkpoint, args.tasks, split=args.split, out=args.out, overrides=args.overrides)
    return 0


def run_plan(arguments: Sequence[str]) -> int:
    """`plan`: the injection table with integers, from configurations alone."""
    parser = argparse.ArgumentParser(
        prog="mtvl plan", description="Print what a method adds and trains; needs no weights."
    )
    _recipe_arguments(parser)
    args = parser.parse_intermixed_args(arguments)
    config = load_run_config(args.recipe, args.tasks, args.overrides)
    from mtvl.model import make_plan

    print(make_plan(config).table())
    return 0


def run_inspect(arguments: Sequence[str]) -> int:
    """`inspect task=vqa index=3`: the path of one real sample."""
    parser = argparse.ArgumentParser(
        prog="mtvl inspect", description="Print the path of one real sample: row, text, shapes, labels, loss.",
        usage="mtvl inspect task=NAME [index=N] [split=train] [checkpoint=RUN] [--recipe FILE] [key=value ...]",
    )  # fmt: skip
    _recipe_arguments(parser)
    args = parser.parse_intermixed_args(arguments)
    own, rest = {"task": "", "index": "0", "split": "train", "checkpoint": ""}, []
    for item in args.overrides:
        key, _, value = item.partition("=")
        if key in own:
            own[key] = value
        else:
            rest.append(item)
    if not own["task"] and len(args.tasks) != 1:
        raise ConfigError("which task? give task=NAME, e.g. mtvl inspect task=vqa index=3")
    if not own["index"].lstrip("-").isdigit():
        raise ConfigError(f"'index' expects an integer, found {own['index']!r}")
    from mtvl.engine import start
    from mtvl.inspecting import inspect_sample

    start()
    task = own["task"] or args.tasks[0]
    config = load_run_config(args.recipe, [task], rest)
    print(inspect_sample(config, task, int(own["index"]), own["split"], own["checkpoint"]))
    return 0


def run_predict(arguments: Sequence[str]) -> int:
    """`predict`: picture and question in, answer out."""
    parser = argparse.ArgumentParser(
        prog="mtvl predict", description="Answer for one picture (or two) with a trained checkpoint."
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run folder or an export folder")
    parser.add_argument("--task", required=True, help="the task whose prompt, decoding and adapters are used")
    parser.add_argument("--image", type=Path, action="append", default=[], help="picture file; twice for two pictures")
    parser.add_argument("--text", default="", help="question or statement")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. data.root=/data for a task of one's own"
    )
    args = parser.parse_intermixed_args(arguments)
    from mtvl.engine import start
    from mtvl.inspecting import predict_one

    start()
    print(predict_one(args.checkpoint, args.task, args.image, args.text, args.overrides))
    return 0


def run_estimate(arguments: Sequence[str]) -> int:
    """`estimate`: memory, communication and time of a recipe on a number of devices, by ZeRO stage."""
    parser = argparse.ArgumentParser(
        prog="mtvl estimate", description="What a recipe needs per device; from shapes alone, no weights and no data."
    )
    _recipe_arguments(parser)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines")
    parser.add_argument("--gpus-per-node", type=int, default=1, metavar="G", help="devices of a machine")
    parser.add_argument("--device", default="a100_80", help="a name of mtvl/estimate/devices.yaml")
    args = parser.parse_intermixed_args(arguments)
    config = load_run_config(args.recipe, args.tasks, args.overrides)
    from mtvl.estimate.report import estimate

    print(estimate(config, args.nodes, args.gpus_per_node, args.device))
    return 0


def run_nodes(arguments: Sequence[str]) -> int:
    """`nodes`: try every machine of a hostfile before a run is started on them."""
    from mtvl.nodes import DEFAULT_PORT, check_nodes

    parser = argparse.ArgumentParser(
        prog="mtvl nodes", description="Try every machine of a hostfile: ssh, paths, versions, interfaces, the port."
    )
    parser.add_argument("--hostfile", type=Path, required=True, help="lines such as: worker-1 slots=4")
    parser.add_argument("--master-port", type=int, default=DEFAULT_PORT, help="as of deepspeed --master_port")
    args = parser.parse_args(arguments)
    print(check_nodes(args.hostfile, args.master_port))
    return 0


def run_compare(arguments: Sequence[str]) -> int:
    """`compare`: train the methods of a list over seeds, and write one table and a figure."""
    parser = argparse.ArgumentParser(
        prog="mtvl compare",
        description="Train the methods that a recipe lists over its seeds; goes on where it was stopped.",
        usage="mtvl compare --recipe FILE [OUT] [--seeds 0,1,2] [--only NAME,...] [--minutes N] [--dry-run] [key=value ...]",
        epilog="exit code 0: all runs are done; 1: one failed; 2: unusable input; 143: stopped, the same command goes on",
    )
    parser.add_argument("--recipe", type=Path, required=True, help="a list of methods, e.g. launch/recipes/table1.yaml")
    parser.add_argument("--seeds", type=_integers, default=[], help="default: those of the recipe")
    parser.add_argument("--only", type=_split, default=[], help="names of methods; default: all of the recipe")
    parser.add_argument("--minutes", type=_minutes, default=None, help="stop after so many, in an orderly way")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, their state and the expected time")
    parser.add_argument(
        "words", nargs="*", metavar="OUT key=value",
        help="OUT: folder of tables, records (small JSON) and run folders, default results/NAME of the recipe; "
        "key=value: for all runs, e.g. train.steps=1600",
    )  # fmt: skip
    args = parser.parse_intermixed_args(arguments)
    folders, overrides = ([w for w in args.words if ("=" in w) == is_pair] for is_pair in (False, True))
    if len(folders) > 1:
        raise ConfigError(f"expected one folder OUT and settings as key=value, found {', '.join(map(repr, folders))}")
    from mtvl.compare.recipe import load_comparison
    from mtvl.compare.sweep import compare

    comparison = load_comparison(args.recipe, overrides)
    out = Path(folders[0]) if folders else Path("results") / args.recipe.stem
    return compare(comparison, out, seeds=args.seeds, only=args.only, minutes=args.minutes, dry_run=args.dry_run)


def _integers(text: str) -> list[int]:
    if not all(part.isdigit() for part in _split(text)):
        raise argparse.ArgumentTypeError(f"expected numbers such as 0,1,2, found {text!r}")
    return [int(part) for part in _split(text)]


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not minutes >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of minutes from 0, found {text!r}")
    return minutes


def run_methods(arguments: Sequence[str]) -> int:
    """`methods`: what can be chosen with petl.name, with options and trained parameters."""
    parser = argparse.ArgumentParser(
        prog="mtvl methods", description="List every method with its options and what it trains; needs no weights."
    )
    _recipe_arguments(parser)
    args = parser.parse_intermixed_args(arguments)
    from mtvl.compare.methods import matrix_table, methods_table

    print(methods_table(args.recipe, args.tasks, args.overrides))
    print(f"\nways of sharing over tasks (petl.share) by backbone\n{matrix_table()}")
    return 0


def run_gallery(arguments: Sequence[str]) -> int:
    """`gallery`: right and wrong answers of an evaluated run with their pictures, as one file."""
    parser = argparse.ArgumentParser(
        prog="mtvl gallery", description="Show right and wrong answers of an evaluated run with their pictures."
    )
    parser.add_argument("run", type=Path, help="the run or export folder that was evaluated")
    parser.add_argument("--task", required=True, help="a task that was evaluated")
    parser.add_argument("--split", default="test", help="the split that was evaluated")
    parser.add_argument("--out", type=Path, default=None, help=".html or .png; default: RUN/gallery/TASK.html")
    parser.add_argument("--right", type=int, default=8, metavar="N", help="right answers to show")
    parser.add_argument("--wrong", type=int, default=8, metavar="N", help="wrong answers to show")
    parser.add_argument("--seed", type=int, default=0, help="which items are drawn")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=/data where data have moved")
    args = parser.parse_intermixed_args(arguments)
    from mtvl.gallery import Choice, gallery

    choice = Choice(args.right, args.wrong, args.seed)
    file = gallery(args.run, args.task, split=args.split, out=args.out, choice=choice, overrides=args.overrides)
    print(f"written: {file}")
    return 0


def run_frames(arguments: Sequence[str]) -> int:
    """`frames`: which frames of a video a text asks for, as PNG and SVG."""
    parser = argparse.ArgumentParser(
        prog="mtvl frames", description="Draw the weights that a text gives to the frames of a video (BLIP)."
    )
    parser.add_argument("run", type=Path, help="a run folder or an export folder")
    parser.add_argument("--task", required=True, help="a task on videos")
    parser.add_argument("--item", default="0", help="uid of an example, or its number in the split")
    parser.add_argument("--split", default="test", help="train, val, test or another split of the task")
    parser.add_argument(
        "--text", action="append", default=[], help="another text in place of the example's; may be repeated"
    )
    parser.add_argument("--rule", default="", help="paper | cosine | as_coded; default: the run's own")
    parser.add_argument("--out", type=Path, default=None, help="default: RUN/figures/frames_TASK_UID.png and .svg")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=/data where data have moved")
    args = parser.parse_intermixed_args(arguments)
    from mtvl.figures.frames import frames_figure

    found, files = frames_figure(
        args.run, args.task, args.item, split=args.split, texts=args.text, rule=args.rule, out=args.out,
        overrides=args.overrides,
    )  # fmt: skip
    for weighted in found:
        print(f"{weighted.text!r}: {' '.join(f'{weight:.4f}' for weight in weighted.weights)}")
    print("written: " + ", ".join(map(str, files)))
    return 0


def run_modalities(arguments: Sequence[str]) -> int:
    """`modalities`: inputs of adapters by modality in a plane, as PNG and SVG."""
    parser = argparse.ArgumentParser(
        prog="mtvl modalities", description="Draw what adapters are given, by modality, for some layers."
    )
    parser.add_argument("run", type=Path, help="a run folder or an export folder")
    parser.add_argument("--tasks", type=_split, default=[], help="default: the tasks that it was trained on")
    parser.add_argument("--split", default="test", help="train, val, test or another split of the tasks")
    parser.add_argument("--examples", type=int, default=100, metavar="N", help="examples of each task")
    parser.add_argument("--layers", type=_integers, default=[], help="e.g. 0,5,11; default: first, middle and last")
    parser.add_argument("--projection", default="pca", help="pca | tsne (slow beyond some thousand points)")
    parser.add_argument("--seed", type=int, default=0, help="of t-SNE")
    parser.add_argument(
        "--out", type=Path, default=None, help="default: RUN/figures/modalities_PROJECTION_TASKS.png and .svg"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=/data where data have moved")
    args = parser.parse_intermixed_args(arguments)
    from mtvl.figures.modalities import modalities_figure

    found, files = modalities_figure(
        args.run, args.tasks, split=args.split, count=args.examples, layers=args.layers, projection=args.projection,
        seed=args.seed, out=args.out, overrides=args.overrides,
    )  # fmt: skip
    for layer in found:
        print(f"layer {layer.layer}: " + ", ".join(f"{name} {len(points):,}" for name, points in layer.points.items()))
    print("written: " + ", ".join(map(str, files)))
    return 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": run_train,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "inspect": run_inspect,
    "plan": run_plan,
    "methods": run_methods,
    "estimate": run_estimate,
    "nodes": run_nodes,
    "compare": run_compare,
    "gallery": run_gallery,
    "frames": run_frames,
    "modalities": run_modalities,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Errors that a user can mend are printed without a traceback; the exit code is then 2.

    0: done. 1: an unexpected error. 75: another rank was lost, or a step was stuck. 143: stopped by a signal, and saved.
    After 75 and 143 the same command goes on.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:10} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
        print("usage: mtvl VERB ...\n\n" + "\n".join(lines) + "\n\nmtvl VERB --help lists the flags of a verb.")
        return 0 if arguments else 2
    code = 1
    try:
        if arguments[0] not in VERBS:
            raise ConfigError(f"unknown verb {arguments[0]!r}; {near_names(arguments[0], VERBS)}")
        code = VERBS[arguments[0]](arguments[1:])
    except MtvlError as error:
        print(f"mtvl: error: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except OSError as error:  # no room below knows more of it
        if error.errno not in FULL_DISK:
            traceback.print_exc()
        else:
            where = f"{error.filename}: " if error.filename else ""
            print(f"mtvl: error: {where}{error.strerror}; make room there, or give a place that can be written to",
                  file=sys.stderr, flush=True)  # fmt: skip
            code = MtvlError.exit_code
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 2
    except BaseException:
        traceback.print_exc()
    return code


def program(arguments: Sequence[str] | None = None) -> NoReturn:
    """`main` as a process of its own: also ends the process group, where there is one, so that no rank is left waiting."""
    code = main(arguments)
    module = sys.modules.get("mtvl.engine")
    if module is not None and "RANK" in os.environ:
        module.finish(code)
    sys.exit(code)


if __name__ == "__main__":
    program()
