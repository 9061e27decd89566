"""From the engine file and the recipe to the configuration that DeepSpeed is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtvl.config import RunConfig
from mtvl.errors import EngineError, near_names

# Decided by the recipe: two places for one setting would sooner or later disagree.
OWNED_BY_RECIPE = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch, train.micro_batch and mixture.slots",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim.name",
    "scheduler": "optim.schedule",
    "lr": "optim.lr",
}
# DeepSpeed ignores top-level keys that it does not know, so a slip would silently mean ZeRO-0.
ALLOWED = (
    "zero_optimization", "bf16", "fp16", "data_types", "communication_data_type", "comms_logger", "flops_profiler",
    "wall_clock_breakdown", "memory_breakdown",
)  # fmt: skip
BUCKET = 500_000_000  # DeepSpeed's, in numbers
PROJECT_ROOT = Path(__file__).resolve().parents[2]


def read_engine_file(file: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON file; relative paths are taken from the working folder, then from the project's root.

    Raises EngineError when the file is missing or broken, or holds a key that the recipe owns or nobody knows.
    """
    candidates = [Path(file)] if Path(file).is_absolute() else [Path(file), PROJECT_ROOT / file]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        known = sorted(p.name for p in candidates[-1].parent.glob("*.json"))
        raise EngineError(f"no engine file {file} ('engine.file'); {near_names(Path(file).name, known)}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise EngineError(f"{path}: expected an object at the top, found {type(values).__name__}")
    for key in values:
        if key in OWNED_BY_RECIPE:
            raise EngineError(f"{path}: '{key}' belongs to the recipe ({OWNED_BY_RECIPE[key]}); remove it here")
        if key not in ALLOWED:
            raise EngineError(f"{path}: unknown key '{key}'; {near_names(key, ALLOWED)}")
    zero = _section(path, values, "zero_optimization")
    for owner, names in ((values, ("bf16", "fp16", "data_types")), (zero, ("offload_optimizer", "offload_param"))):
        for name in names:
            _section(path, owner, name)
    if (stage := zero.get("stage", 0)) not in (0, 1, 2, 3) or not isinstance(stage, int) or isinstance(stage, bool):
        raise EngineError(f"{path}: 'zero_optimization.stage' expects 0, 1, 2 or 3, found {stage!r}")
    return values


def _section(path: Path, values: dict[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key, {})
    if not isinstance(section, dict):
        raise EngineError(f"{path}: '{key}' expects an object with keys of its own, found {section!r}")
    return section


def check_engine(config: RunConfig, device: str) -> None:
    """EngineError for an engine file that this recipe cannot train with on `device`, before data and model are built."""
    check_sections(config)
    deepspeed_settings(config, 1, 1)
    check_precision(config.train.precision, device)


def check_sections(config: RunConfig) -> None:
    """EngineError for what DeepSpeed's own configuration does not take, by file and key."""
    from deepspeed.runtime import constants, precision_config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    values = read_engine_file(config.engine.file)
    kinds = {
        "zero_optimization": DeepSpeedZeroConfig, "bf16": precision_config.DeepSpeedBF16Config,
        "fp16": precision_config.DeepSpeedFP16Config,
    }  # fmt: skip
    for key, kind in kinds.items():
        try:
            kind(**values.get(key, {}))
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(str(part) for part in (key, *wrong["loc"]))
            what = f"{wrong['msg']}, found {wrong['input']!r}" if wrong["loc"] else wrong["msg"]
            if wrong["type"] == "extra_forbidden":
                own = len(wrong["loc"]) == 1  # else of a section inside
                what = "unknown key" + (f"; {near_names(str(wrong['loc'][0]), kind.model_fields)}" if own else "")
            raise EngineError(f"{config.engine.file}: '{place}': {what}") from None
    # The last is new in DeepSpeed 0.19.8.
    names = ("GRAD_ACCUM_DTYPE", "PARAM_DTYPE", "BUFFER_DTYPE", "KEEP_IN_FP32_MODULES")
    dtypes = [getattr(constants, name) for name in names if hasattr(constants, name)]
    for key in values.get("data_types", {}):
        if key not in dtypes:  # DeepSpeed passes over it
            raise EngineError(f"{config.engine.file}: 'data_types.{key}': unknown key; {near_names(key, dtypes)}")


def precision_of(values: dict[str, Any]) -> str:
    """Precision that a DeepSpeed configuration asks for: fp32, bf16 or fp16."""
    enabled = [name for name in ("bf16", "fp16") if values.get(name, {}).get("enabled", False)]
    if len(enabled) > 1:
        raise EngineError("the engine file enables bf16 and fp16; choose one")
    return enabled[0] if enabled else "fp32"


def check_precision(precision: str, device: str) -> None:
    """EngineError for fp16 on a CPU, before DeepSpeed refuses it with less to say."""
    if precision == "fp16" and device == "cpu":
        raise EngineError(
            "fp16 trains on GPUs alone, and this run has a CPU; set train.precision=fp32 engine.file=ds_configs/zero2.json, or "
            "train.precision=bf16 engine.file=ds_configs/zero2_bf16.json"
        )


def check_agreement(config: RunConfig, values: dict[str, Any]) -> None:
    """EngineError where an engine file contradicts the recipe, or asks for something that the engine does without."""
    precision = precision_of(values)
    if precision != config.train.precision:
        raise EngineError(
            f"'train.precision' is {config.train.precision} but the engine file {config.engine.file} says {precision}; "
            "change one of them"
        )
    zero = values.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if precision != "fp32" and stage < 2:
        raise EngineError(f"{config.engine.file}: {precision} needs ZeRO stage 2 or 3, found stage {stage}")
    for key in ("offload_optimizer", "offload_param"):
        if zero.get(key, {}).get("device", "none") == "nvme":
            raise EngineError(f"{config.engine.file}: '{key}' on nvme is not supported; use cpu or none")
    for section, key in (("zero_optimization", "compute_grad_norm"), ("bf16", "check_grad_overflow")):
        if not values.get(section, {}).get(key, True):
            raise EngineError(
                f"{config.engine.file}: '{section}.{key}' is off: gradients would not be clipped, or ones that are not finite not "
                "be found; remove it here"
            )


def deepspeed_settings(
    config: RunConfig, micro_steps: int, world_size: int, num_trainable: int = BUCKET
) -> dict[str, Any]:  # fmt: skip
    """The complete DeepSpeed configuration of a run.

    `micro_steps` is the number of micro-steps of one optimizer step on one rank; the bucket in which gradients are
    collected is no larger than the `num_trainable` of them. Raises EngineError when the engine
    file contradicts the recipe or asks for something that idle tasks do not survive.
    """
    values = read_engine_file(config.engine.file)
    check_agreement(config, values)
    zero = values.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    micro = config.train.micro_batch
    offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    if stage > 0:
        # DeepSpeed's own bucket takes 2 GB of every device, however few parameters are trained. With room for all of
        # them nothing is sent in other pieces than before.
        zero = {"reduce_bucket_size": min(BUCKET, max(1, num_trainable)), **zero}
    return {
        **values,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": micro_steps,
        "train_batch_size": micro * micro_steps * world_size,
        "gradient_clipping": config.optim.clip_norm,  # always written: DeepSpeed clips at 1.0 when it is absent
        # With the optimizer offloaded, DeepSpeed's own accumulation keeps only gradients of parameters that were used in
        # the last micro-step; with the boundary in our hands it keeps those of the whole window.
        "managed_gradient_accumulation": not (offloaded and stage >= 2),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
