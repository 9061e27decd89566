"""Recipes: frozen dataclasses with defaults, one YAML file (or a chain of `base` recipes), and `key=value` overrides
parsed by the field's type.

A section whose content depends on a name (`backbone`, `petl`) stays a plain mapping here; its owner parses it with
`parse_section` against its own dataclass, so an option of one method is an error under another.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mtvl.errors import ConfigError, near_names
from mtvl.recipe import NAMED_SECTIONS, narrowed, read_recipe
from mtvl.recipe import read_yaml as read_yaml  # task files are read the same way

T = TypeVar("T")


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training pictures, where the model reads pixels; as they stand here there are none.

    `least_area`: smallest share of a picture that a random crop keeps. `flip`: chance of a mirror image (none where texts or
    answers speak of left or right). `operations` of `mtvl.data.augment.OPERATIONS`, at `magnitude` of 10. BLIP: 0.5 (0.2 in
    pre-training), 0.5, 2 and 5.
    """

    least_area: float = 1.0
    flip: float = 0.0
    operations: int = 0
    magnitude: int = 5


@dataclass(frozen=True)
class DataConfig:
    """Where data lie. An empty `root` means the embedded miniworld, made on first use in `cache`."""

    root: str = ""
    cache: str = ""  # "" -> $MTVL_CACHE or ~/.cache/mtvl
    workers: int = 0
    text_only: bool = False  # the visual input is zeroed (the text-only baseline)
    frame_seconds: float = 1.5  # distance of the frames taken from a video; stored features must have been taken so too
    video_decoder: str = "auto"  # auto | decord | torchcodec | pyav
    fill: str = "eager"  # eager | lazy: features that are not stored are computed before training, or when first read
    max_examples: int = 0  # per task and split, evenly spread; 0 = all. Scores say how many items they rest on.
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    @property
    def folder(self) -> Path | None:
        """`root` as a path; None when it is not set."""
        return Path(self.root).expanduser() if self.root else None


@dataclass(frozen=True)
class MixtureConfig:
    """Which task a slot takes. `weights` belong to the law "fixed"."""

    law: str = "proportional"  # proportional | equal | temperature | capped | fixed
    temperature: float = 2.0
    cap: int = 0
    weights: dict[str, float] = field(default_factory=dict)
    slots: int = 1  # tasks per optimizer step
    block: int = 100  # slots per block; shares are exact in every block
    bucket: int = 1  # slots of a task whose rows are shared out by length, for less padding; 1 = as drawn
    loss_weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch sizes and validation. `global_batch` counts examples of one slot over all ranks."""

    steps: int = 1000
    global_batch: int = 64
    micro_batch: int = 64
    validate_every: int = 0  # steps; 0 = only at the end when checkpoint.keep_best is set
    validate_examples: int = 200  # per task
    recompute: bool = False  # activation recompute in the backbone's layers
    log_every: int = 10
    precision: str = "fp32"  # fp32 | bf16 | fp16 (GPUs alone); must agree with the engine file
    stuck_seconds: float = (
        1800.0  # a step, save or validation batch that takes longer ends the run with a report; 0 = never
    )


@dataclass(frozen=True)
class TowerOptimConfig:
    """Settings of a visual tower that is trained (`backbone.train_tower`) where they differ from the rest's."""

    lr: float = 0.0  # peak; 0 = as optim.lr. The schedule is the same
    weight_decay: float = -1.0  # below 0 = as optim.weight_decay


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule; both are pure functions of the optimizer step."""

    name: str = "adamw"  # adamw | adamw_reference | sgd
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    schedule: str = "linear"  # linear | cosine | constant
    clip_norm: float = 5.0  # 0 = off; over all trained parameters together
    backbone_lr_scale: float = 1.0  # times lr: weights that a method trains and did not add (norms, visual embedding)
    tower: TowerOptimConfig = field(default_factory=TowerOptimConfig)


@dataclass(frozen=True)
class PairsConfig:
    """Contrast and matching of pictures (or videos) with texts, for tasks whose loss is "pairs".

    `queue_size` and `momentum` of the teacher; `alpha` is its share in the targets, reached after `ramp_steps`
    micro-batches. `targets`, `all_ranks`, `smoothing`, `agreement` and `agreement_temperature` as in
    `mtvl.steps.retrieval.RetrievalOptions`. `language`: weight of the loss of writing the text from the picture.
    """

    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4
    ramp_steps: int = 0
    targets: str = "ids"  # ids | diagonal
    all_ranks: bool = False
    smoothing: float = 0.0
    agreement: float = 0.0
    agreement_temperature: float = 0.0
    language: float = 0.0


@dataclass(frozen=True)
class EngineConfig:
    """DeepSpeed JSON (ZeRO stage, offload and precision only), and what a step on a CPU may hold."""

    file: str = "ds_configs/zero2.json"
    pack_frozen: bool = True  # on CPUs: frozen weights in the processor's layout too; faster, but more memory


# What a checkpoint belongs to (`mtvl.train.identity_of` makes it), by the names that `checkpoint.allow` takes.
RUN_ITEMS = (
    "base", "tower", "plan", "backbone", "petl", "tasks", "seed", "number of examples", "examples", "mixture", "schedule",
    "train.global_batch", "train.steps", "train.precision", "optim", "paper_compat", "data.text_only", "data.augment", "pairs",
)  # fmt: skip


@dataclass(frozen=True)
class CheckpointConfig:
    """Resume states."""

    every_steps: int = 500
    keep_last: int = 2
    keep_best: bool = True
    background: bool = True  # written while training goes on; rank 0 holds a copy of the state meanwhile
    allow: tuple[str, ...] = ()  # items of a run's identity, by name, that a resume may find changed; each is warned of


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation. Zero or empty values mean: as the task file says."""

    batch: int = 64
    mixed: bool = False  # batches mix all tasks by example, each row answered by its own task's parts
    partitioned: bool = False  # weights are split over the ranks (ZeRO-3), for a model that does not fit a device
    num_beams: int = 0
    captions_tokenizer: str = "auto"  # auto | ptb | python
    bootstrap: int = 1000
    max_examples: int = 0  # as data.max_examples, of the splits other than train; the smaller of both holds


@dataclass(frozen=True)
class RunConfig:
    """One complete run. `task` lays keys over task files: `task.tvqa.decoding.mode=generate`."""

    tasks: tuple[str, ...] = ()
    task: dict[str, dict[str, Any]] = field(default_factory=dict)
    seed: int = 0
    paper_compat: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    backbone: dict[str, Any] = field(default_factory=lambda: {"name": NAMED_SECTIONS["backbone"]})
    petl: dict[str, Any] = field(default_factory=lambda: {"name": NAMED_SECTIONS["petl"]})
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def parse_section(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Build the dataclass `cls` from plain YAML values; unknown keys and wrong types raise ConfigError with the path."""
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise ConfigError(f"unknown key '{dotted}'; {near_names(str(key), fields)}")
        arguments[key] = _coerce(hints[key], value, dotted)
    missing = [
        n for n, f in fields.items()
        if n not in arguments and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"missing key '{path + '.' if path else ''}{missing[0]}' ({_name(hints[missing[0]])})")
    return cls(**arguments)


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """Check `value` against the type `hint`; integers are accepted for floats, lists for tuples, nothing else."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wrong = ConfigError(f"'{path}' expects {_name(hint)}, found {value!r} ({type(value).__name__})")
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{path}' expects a section of keys, found {value!r}")
        return parse_section(typing.cast(Any, hint), value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(next(a for a in args if a is not type(None)), value, path)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise wrong
        if len(args) == 2 and args[1] is ...:
            return tuple(_coerce(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise ConfigError(f"'{path}' expects {len(args)} values, found {len(value)}")
        return tuple(_coerce(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise wrong
        return {str(k): _coerce(args[1], v, f"{path}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            raise wrong from None
    if isinstance(value, bool) and hint is not bool:
        raise wrong
    if not isinstance(value, hint):
        raise wrong
    return value


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of nested `values` with `a.b=c` overrides set; the right side is read as YAML. ConfigError names a bad one.

    Another `backbone.name` or `petl.name` drops the recipe's options of the old one, but none that is given beside it,
    in whatever order.
    """
    result: dict[str, Any] = _copy(values)
    switches = [f"{section}.name" for section in NAMED_SECTIONS]
    for item in sorted(overrides, key=lambda text: text.partition("=")[0] not in switches):
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {item!r} is not of the form key=value")
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise ConfigError(f"the value of override {item!r} is not valid YAML") from None
        node = result
        *parents, last = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"override {item!r}: '{parent}' is a value, not a section")
            node = child
        if key in switches and node.get("name", value) != value:
            node.clear()
        node[last] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def load_run_config(recipe: str | Path, tasks: Sequence[str] = (), overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe with its bases, apply `--tasks` and overrides, check it as a whole. ConfigError names the key.

    With `tasks` the recipe's settings for tasks of its own that are not among them are left out.
    """
    defaults = {section: {"name": name} for section, name in NAMED_SECTIONS.items()}
    values = read_recipe(recipe)
    if "methods" in values:
        raise ConfigError(
            f"{recipe} lists methods to compare and is no run; start it with: mtvl compare --recipe {recipe}"
        )
    values = apply_overrides({**defaults, **(narrowed(values, tasks) if tasks else values)}, overrides)
    if tasks:
        values["tasks"] = list(tasks)
    config = parse_section(RunConfig, values)
    validate(config)
    return config


def validate(config: RunConfig) -> None:
    """Cross-field checks that need no data, model or device; ConfigError names the key, with what was expected and found."""
    choices = {
        "mixture.law": (config.mixture.law, ("proportional", "equal", "temperature", "capped", "fixed")),
        "optim.name": (config.optim.name, ("adamw", "adamw_reference", "sgd")),
        "optim.schedule": (config.optim.schedule, ("linear", "cosine", "constant")),
        "train.precision": (config.train.precision, ("fp32", "bf16", "fp16")),
        "data.video_decoder": (config.data.video_decoder, ("auto", "decord", "torchcodec", "pyav")),
        "data.fill": (config.data.fill, ("eager", "lazy")),
        "evaluate.captions_tokenizer": (config.evaluate.captions_tokenizer, ("auto", "ptb", "python")),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"unknown '{key}' {value!r}; {near_names(value, allowed)}")
    if not config.tasks:
        raise ConfigError("no tasks; give --tasks a,b,c or the key 'tasks' in the recipe")
    if len(set(config.tasks)) != len(config.tasks):
        raise ConfigError(f"a task is named twice in {','.join(config.tasks)}")
    for name in config.task:
        if name not in config.tasks:
            raise ConfigError(f"'task.{name}' is not one of the tasks; {near_names(name, config.tasks)}")
    for section in ("mixture.weights", "mixture.loss_weights"):
        for name, weight in getattr(config.mixture, section.split(".")[1]).items():
            if name not in config.tasks:
                raise ConfigError(f"'{section}.{name}' is not one of the tasks; {near_names(name, config.tasks)}")
            if not weight > 0:
                raise ConfigError(f"'{section}.{name}' must be above 0, found {weight}")
    for name in config.checkpoint.allow:
        if name not in RUN_ITEMS:
            raise ConfigError(f"'checkpoint.allow': no item of a run is called {name!r}; {near_names(name, RUN_ITEMS)}")
    if config.optim.tower != TowerOptimConfig() and not config.backbone.get("train_tower"):
        raise ConfigError(
            "'optim.tower' is for a tower that is trained; set backbone.train_tower=true, or leave it out"
        )
    _check_numbers(config)


def _check_numbers(config: RunConfig) -> None:
    """Bounds of single numbers."""
    positive = {
        "train.steps": config.train.steps, "train.global_batch": config.train.global_batch,
        "train.micro_batch": config.train.micro_batch, "mixture.slots": config.mixture.slots,
        "mixture.block": config.mixture.block, "mixture.bucket": config.mixture.bucket,
        "mixture.temperature": config.mixture.temperature,
        "data.frame_seconds": config.data.frame_seconds, "optim.lr": config.optim.lr, "evaluate.batch": config.evaluate.batch,
        "checkpoint.keep_last": config.checkpoint.keep_last, "train.log_every": config.train.log_every,
        "checkpoint.every_steps": config.checkpoint.every_steps, "evaluate.bootstrap": config.evaluate.bootstrap,
    }  # fmt: skip
    for key, number in positive.items():
        if not number > 0:
            raise ConfigError(f"'{key}' must be above 0, found {number}")
    not_negative = {
        "data.workers": config.data.workers, "data.max_examples": config.data.max_examples,
        "train.stuck_seconds": config.train.stuck_seconds, "train.validate_every": config.train.validate_every, "train.validate_examples": config.train.validate_examples,
        "optim.clip_norm": config.optim.clip_norm, "optim.weight_decay": config.optim.weight_decay,
        "optim.backbone_lr_scale": config.optim.backbone_lr_scale, "pairs.ramp_steps": config.pairs.ramp_steps,
        "pairs.smoothing": config.pairs.smoothing, "pairs.agreement": config.pairs.agreement,
        "pairs.language": config.pairs.language, "pairs.agreement_temperature": config.pairs.agreement_temperature,
        "data.augment.operations": config.data.augment.operations, "evaluate.max_examples": config.evaluate.max_examples,
        "evaluate.num_beams": config.evaluate.num_beams, "optim.tower.lr": config.optim.tower.lr, "optim.eps": config.optim.eps,
    }  # fmt: skip
    for key, number in not_negative.items():
        if not number >= 0:
            raise ConfigError(f"'{key}' must be 0 or above, found {number}")
    augment = config.data.augment
    if not (0 < augment.least_area <= 1 and 0 <= augment.flip <= 1 and 0 <= augment.magnitude <= 10):
        raise ConfigError(
            "'data.augment.least_area' must lie above 0 and up to 1, 'data.augment.flip' in 0..1 and 'data.augment.magnitude' "
            f"in 0..10; found {augment.least_area:g}, {augment.flip:g} and {augment.magnitude}"
        )
    for key, share in (("pairs.alpha", config.pairs.alpha), ("optim.warmup_ratio", config.optim.warmup_ratio)):
        if not 0 <= share <= 1:
            raise ConfigError(f"'{key}' must lie in 0..1, found {share}")
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise ConfigError(f"'optim.betas' must lie in 0..1, below 1, found {config.optim.betas}")


def to_plain(config: Any) -> Any:
    """Plain YAML/JSON values of a (nested) dataclass, for `config.yaml` and fingerprints."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(k): to_plain(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain(v) for v in config]
    return config
