"""What a training config must be: types come from ml_collections, the rest is checked here, before any work.

Imports no jax, so that a mistyped field costs no start-up of an accelerator.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from ml_collections import config_dict

from cogpo_jax import tracking
from cogpo_jax.atomic import check_client, check_writable, is_remote
from cogpo_jax.configs import tiny_cpu
from cogpo_jax.errors import UserError
from cogpo_jax.records.schema import GAPS
from cogpo_jax.student.hf_files import read_json
from cogpo_jax.text import END_OF_TURN, TextFormat

OBJECTIVES = ("sft", "cogpo", "dpo")

_CHOICES = {
    "objective": OBJECTIVES,
    "reference": ("cached", "live"),
    "param_dtype": ("float32", "bfloat16"),
    "compute_dtype": ("float32", "bfloat16"),
    "attention": ("auto", "xla", "splash", "gpu"),
    "remat": ("none", "dots", "full", "offload"),
    "optimizer.schedule": ("cosine", "linear", "constant"),
}
_AT_LEAST = {
    "epochs": 0,
    "max_steps": 0,
    "batch.groups": 1,
    "rows.length": 2,
    "rows.per_device": 1,
    "logits_chunk": 1,
    "optimizer.learning_rate": 0,
    "optimizer.schedule_steps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_norm": 0,
    "optimizer.eps": 0,
    "distributed.num_processes": 0,
    "distributed.process_id": -1,
    "eval.every": 0,
    "eval.generate.every": 0,
    "eval.generate.problems": 1,
    "eval.generate.max_tokens": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "watchdog.seconds": 0,
    "reference_cache.max_drift": 0,
    "loss.nll_weight": 0,
    "loss.length_penalty": 0,
    "loss.displacement_penalty": 0,
    "mesh.replica": -1,
    "mesh.data": -1,
    "mesh.fsdp": -1,
    "mesh.tensor": -1,
}
_WITHIN = {
    "optimizer.warmup_ratio": (0, 1),
    "optimizer.min_learning_rate_ratio": (0, 1),
    "optimizer.b1": (0, 1 - 1e-9),  # at 1 Adam's moments never move, and their correction divides by 0
    "optimizer.b2": (0, 1 - 1e-9),
    "rows.shapes": (1, 3),
    "seed": (0, 2**32 - 1),
    "loss.label_smoothing": (0, 0.5),
}
# May differ when a run goes on: they decide where and how it runs, not what it computes.
FREE_ON_RESUME = (
    "max_steps",
    "mesh",
    "rows.per_device",
    "rows.shapes",
    "attention",
    "remat",
    "logits_chunk",
    "eval",
    "checkpoint",
    "log",
    "profile",
    "token_cache",
    "compile_cache",
    "reference_cache",
    "distributed",
    "watchdog",
)


# What an objective does not read.
_UNUSED = {"sft": ("beta", "loss", "reference"), "dpo": tuple(f"beta.{gap}" for gap in GAPS[:3])}
_PATHS = (
    *("data", "init_from", "model", "tokenizer", "eval.data", "eval.generate.data"),
    *("reference_cache.dir", "token_cache.dir", "compile_cache.dir"),
)


def check(config: config_dict.ConfigDict) -> None:
    """Raises UserError naming the first field that is missing, out of range or contradicts another."""
    flat = flatten(config.to_dict())
    for field, default in flatten(tiny_cpu.get_config().to_dict()).items():
        section, value = field.partition(".")[0], flat.get(field)
        if field not in flat and section != field and section in config:
            given = config.to_dict()[section]
            raise UserError(f"{section}: {given!r}: must be given field by field, as --config.{field}=...")
        if value is None:
            raise UserError(f"{field}: None: must have a value; configs/tiny_cpu.py has the default")
        if type(value) is not type(default) and (type(value), type(default)) != (int, float):
            raise UserError(f"{field}: {value!r}: must be of type {type(default).__name__}")
    tracking.check(config.log)
    for field in _PATHS:
        check_client(field, flat[field])
    for field, known in _CHOICES.items():
        if flat[field] not in known:
            raise UserError(f"{field}: {flat[field]!r}: must be one of {', '.join(known)}")
    for field, low in _AT_LEAST.items():
        if not flat[field] >= low or math.isinf(flat[field]):
            raise UserError(f"{field}: {flat[field]}: must be at least {low}")
    for field, (low, high) in _WITHIN.items():
        if not low <= flat[field] <= high:
            end = "below 1" if high == 1 - 1e-9 else f"at most {high}"
            raise UserError(f"{field}: {flat[field]}: must be at least {low} and {end}")
    for name in (*GAPS[:3], "default"):
        if not 0 < config.beta[name] < math.inf:
            raise UserError(f"beta.{name}: {config.beta[name]}: must be above 0")
    if not config.epochs and not config.max_steps:
        raise UserError("epochs: 0: must be at least 1, or max_steps set")
    if not config.data:
        raise UserError("data: empty: must be a folder of shards with manifest.json (written by launch/crv.py)")
    if not config.init_from and not config.model:
        raise UserError(
            "init_from: empty: must be a Hugging Face folder or an earlier workdir, or `model` a config.json"
        )
    if not config.init_from and not config.tokenizer:
        raise UserError("tokenizer: empty: must be a folder with tokenizer.json where init_from gives none")
    if config.eval.generate.task and not config.eval.generate.data:
        raise UserError("eval.generate.data: empty: must be a file of the task's problems")
    profile_steps(config)
    text_format(config)


def resolved(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """A copy in which `~` stands for the home folder in every path."""
    config = config.copy_and_resolve_references()
    for name in _PATHS:
        *sections, field = name.split(".")
        section = config
        for part in sections:
            section = section[part]
        if isinstance(section[field], str) and section[field].startswith("~"):
            section[field] = str(Path(section[field]).expanduser())
    return config


def folder(flag: str, path: str | os.PathLike[str]) -> epath.Path:
    """A folder to write, `~` expanded. Raises UserError where none can be written there (`check_writable`)."""
    expanded = path if is_remote(path) else Path(path).expanduser()
    check_writable(flag, expanded)
    return epath.Path(expanded)


def check_workdir(workdir: epath.Path) -> None:
    """Raises UserError where the folder is not of a run: its config.json is a model's, or another program's."""
    config = workdir / "config.json"
    if not config.is_file():
        return
    found = read_json(config)
    if "model_type" in found:
        raise UserError(f"--workdir: {workdir}: is a model's folder: give that as init_from, and another one here")
    if "objective" not in found:
        raise UserError(f"--workdir: {workdir}: its config.json is not of `cogpo train`: give another folder")


@contextlib.contextmanager
def named(field: str) -> Iterator[None]:
    """A UserError of the block is told as one of this config field."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {error}") from error


def same_on_all_hosts(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The config's fields that every host of a run must share, flat."""
    return {k: v for k, v in flatten(config.to_dict()).items() if not k.startswith(("distributed.", "token_cache."))}


def text_format(config: config_dict.ConfigDict) -> TextFormat:
    """The config's text section, checked."""
    return TextFormat(**config.text.to_dict())


def resolve_beta(
    objective: str, beta: Mapping[str, float], gaps: Int[np.ndarray, " P"], own: Float[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    """The beta of every pair, float32: the only place that decides it; training and evaluation use it as it is.

    objective dpo: `beta["default"]` for every pair, whatever the records say. cogpo: the record's `own` beta where it
    has one (NaN: it has none), else `beta[gap]` (gap none: `beta["default"]`). gaps: indices into GAPS.
    """
    if objective == "dpo":
        return np.full(len(gaps), beta["default"], np.float32)
    by_gap = np.array([beta["default"] if gap == "none" else beta[gap] for gap in GAPS], np.float32)
    return np.where(np.isnan(own), by_gap[gaps], own).astype(np.float32)


def profile_steps(config: config_dict.ConfigDict) -> range:
    """The steps to profile, from "first:stop"."""
    if not config.profile.steps:
        return range(0)
    try:
        first, stop = (int(part) for part in config.profile.steps.split(":"))
    except ValueError:
        raise UserError(f"profile.steps: {config.profile.steps!r}: must be first:stop, as 10:12") from None
    if not 0 <= first < stop:
        raise UserError(f"profile.steps: {config.profile.steps!r}: must be first:stop with first below stop, as 10:12")
    return range(first, stop)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested dict."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _deciding(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields that decide what is computed, flat, each in one spelling.

    Data, model and tokenizer are left out: they may lie elsewhere, and plan.json and student.json know their content.
    """
    flat = flatten(tree)
    if not flat.get("epochs") and not flat.get("optimizer.schedule_steps"):
        flat["optimizer.schedule_steps"] = flat.get("max_steps", 0)  # then that part of max_steps is not free
    if "://" not in (first := str(flat.get("init_from") or "")):
        flat["init_from"] = os.path.realpath(first) if first else ""
    else:
        flat["init_from"] = first.rstrip("/")
    flat["text.end_token"] = flat.get("text.end_token") or END_OF_TURN
    flat["text.template_kwargs"] = json.loads(flat.get("text.template_kwargs") or "{}")
    free = (*FREE_ON_RESUME, "data", "model", "tokenizer", *_UNUSED.get(str(flat.get("objective")), ()))
    return {name: value for name, value in flat.items() if not any(f"{name}.".startswith(f"{f}.") for f in free)}


def check_same_run(config: config_dict.ConfigDict, saved: Path) -> None:
    """Raises UserError naming the fields in which a workdir's config.json differs from this config."""
    old, new = (_deciding(tree) for tree in (json.loads(saved.read_text()), config.to_dict()))
    differing = [
        f"{name} ({old.get(name)!r} there, {new.get(name)!r} here)"
        for name in sorted(old.keys() | new.keys())
        if (name in old or new.get(name))  # a field that the workdir's version did not have yet, and that is off
        and old.get(name) != new.get(name)
    ]
    if differing:
        raise UserError(f"workdir: {saved.parent}: belongs to another config: {', '.join(differing)}; take a new one")
