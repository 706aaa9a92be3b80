"""All of a run that does not change while it trains: first weights, data, plan, mesh, programs, its own files."""

import contextlib
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import config_dict

from cogpo_jax import text
from cogpo_jax.atomic import atomic_folder, is_remote, write_atomic, write_json
from cogpo_jax.data.plan import EpochPlan, default_shapes
from cogpo_jax.data.tokens import TokenizedData, length_summary, load_tokens
from cogpo_jax.errors import UserError
from cogpo_jax.heap import keep_freed
from cogpo_jax.objective.cogpo import PreferenceOptions
from cogpo_jax.progress import Bar, say
from cogpo_jax.sharding import check_divides, make_mesh, param_shardings, row_shards
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.hf_files import hub_hint
from cogpo_jax.student.hf_folder import check_exportable, generation_config, tokenizer_files
from cogpo_jax.student.model import ForwardOptions, abstract_params, init_params
from cogpo_jax.student.splash import tile_size
from cogpo_jax.student.weights import check_folder, from_hf
from cogpo_jax.training import settings
from cogpo_jax.training.checkpoint import STUDENT_FILE, TOKENIZER_FOLDER, load_params, with_shardings
from cogpo_jax.training.step import (
    Programs,
    StepSettings,
    learning_rate_schedule,
    make_optimizer,
    make_programs,
    make_score,
)


@dataclasses.dataclass(frozen=True)
class Initial:
    """The student's architecture, its tokenizer's folder, and a way to load its first weights onto a mesh."""

    student: StudentConfig
    tokenizer_folder: Path
    load: Callable[[Mesh], Any]


def resolve_initial(config: config_dict.ConfigDict) -> Initial:
    """Reads what `init_from` is, without loading weights. Raises UserError where it is neither kind of folder."""
    dtype, seed = config.param_dtype, config.seed
    if not config.init_from:
        student = StudentConfig.from_hf(epath.Path(config.model))
        return Initial(student, _local(config.tokenizer), lambda mesh: _random(student, mesh, seed, dtype))
    folder = epath.Path(config.init_from)
    if (folder / "checkpoints").is_dir():
        student = StudentConfig.from_hf(folder / STUDENT_FILE)
        tokenizer = _local(config.tokenizer or folder / TOKENIZER_FOLDER)
        return Initial(student, tokenizer, lambda mesh: load_params(folder, mesh, dtype, say=say)[1])
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"init_from: {config.init_from}: must be a Hugging Face folder or the workdir of an earlier run"
            f"{hub_hint(config.init_from)}"
        )
    student, _ = check_folder(folder)  # now: a fault in it must not wait until the data are read
    tokenizer = _local(config.tokenizer or folder)
    return Initial(student, tokenizer, lambda mesh: from_hf(folder, mesh, dtype)[2])


def keep_freed_memory(student: StudentConfig) -> bool:
    """On a CPU, makes the C library keep freed memory for the next step (heap.py); whether it did."""
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(student)))
    return jax.default_backend() == "cpu" and keep_freed(parameters)


def _local(folder: str | os.PathLike[str]) -> Path:
    """A tokenizer's folder on local disk: itself, or a copy of an object store's (its weights left out)."""
    if not is_remote(folder):
        return Path(folder)
    copy = Path(tempfile.mkdtemp(prefix="cogpo-tokenizer-"))
    for file in epath.Path(folder).iterdir():
        if file.suffix in (".json", ".txt", ".jinja") and file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def _random(student: StudentConfig, mesh: Mesh, seed: int, param_dtype: str) -> Any:
    check_divides(mesh, student)
    shardings = param_shardings(mesh, abstract_params(student, param_dtype))
    return init_params(student, seed, param_dtype, shardings)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What `prepare` made of a config and a workdir on this process."""

    config: config_dict.ConfigDict
    workdir: epath.Path
    initial: Initial
    mesh: Mesh
    tokenizer: Any
    data: TokenizedData
    plan: EpochPlan
    total_steps: int
    pairs: bool  # whether the objective has pairs (CogPO, DPO), and so a reference
    settings: StepSettings
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    abstract: dict[str, Any]  # params and opt_state as ShapeDtypeStructs with shardings
    programs: Programs
    # Of config.eval: its records, a plan that scores them in order, and the score program for that plan's slots.
    held_out: tuple[TokenizedData, EpochPlan, Any] | None
    answers: Callable[[Any], dict[str, float]] | None  # of eval.generate: parameters -> accuracy, lengths

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return jax.process_index() == 0


def prepare(config: config_dict.ConfigDict, workdir: epath.Path, initial: Initial) -> Setup:
    """Reads the data, plans the epochs, writes the run's files. Raises UserError before anything is compiled."""
    mesh = make_mesh(config.mesh.to_dict())
    _check_positions(config, initial.student)
    step_settings(config, initial.student, mesh, 0)  # refuses a mesh or rows that cannot be, before anything is read
    tokenizer = text.load_tokenizer(initial.tokenizer_folder)
    if len(tokenizer) > initial.student.vocab_size:
        raise UserError(
            f"tokenizer: {initial.tokenizer_folder}: has {len(tokenizer)} tokens, "
            f"the student's vocab_size is {initial.student.vocab_size}; must not be more"
        )
    check_exportable(initial.student, initial.tokenizer_folder, settings.text_format(config))
    data = _tokens(config, config.data, "train", tokenizer, workdir, jax.process_index() == 0)
    plan = _plan(config, data, mesh, shuffle=True)
    schedule_steps = config.epochs * plan.steps_per_epoch or config.max_steps
    total_steps = min(schedule_steps, config.max_steps or schedule_steps)
    if 0 < config.optimizer.schedule_steps < total_steps:
        last = config.optimizer.schedule_steps
        say(
            f"warning: optimizer.schedule_steps: {last}: the run has {total_steps} steps, the schedule ends before them"
        )
    compiled_for = step_settings(config, initial.student, mesh, plan.max_slots)
    optimizer = make_optimizer(config.optimizer, schedule_steps)
    abstract = abstract_state(config, initial.student, mesh, optimizer)
    programs = make_programs(compiled_for, optimizer, abstract["params"], abstract["opt_state"])
    held_out = None
    if config.eval.data:  # read now: a fault in it must not wait for the end of training
        with settings.named("eval.data"):
            main = jax.process_index() == 0
            held_data = _tokens(config, config.eval.data, config.eval.split, tokenizer, workdir, main)
            held_plan = _plan(config, held_data, mesh, shuffle=False)
        same_slots = held_plan.max_slots == plan.max_slots
        own_slots = dataclasses.replace(compiled_for, max_slots=held_plan.max_slots)
        held_out = held_data, held_plan, programs.score if same_slots else make_score(own_slots)
    _write_run_files(config, workdir, initial, data, plan, total_steps)
    return Setup(
        config=config,
        workdir=workdir,
        initial=initial,
        mesh=mesh,
        tokenizer=tokenizer,
        data=data,
        plan=plan,
        total_steps=total_steps,
        pairs=config.objective != "sft",
        settings=compiled_for,
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(config.optimizer, schedule_steps),
        abstract=abstract,
        programs=programs,
        held_out=held_out,
        answers=_answers(config, initial, mesh),
    )


def _answers(config: config_dict.ConfigDict, initial: Initial, mesh: Mesh) -> Callable[[Any], dict[str, float]] | None:
    """What `eval.generate` measures of a student's parameters; its task and problems are read and checked now."""
    asked = config.eval.generate
    if not asked.task:
        return None
    from cogpo_jax.evaluation.engines import StudentEngine
    from cogpo_jax.evaluation.run import during_training
    from cogpo_jax.student.decoding import Sampler

    positions = initial.student.max_position_embeddings
    engine = StudentEngine(str(initial.tokenizer_folder), text_format=settings.text_format(config), positions=positions)
    with settings.named("eval.generate"):
        readings = during_training(
            asked.task, asked.data, asked.problems, engine, seed=config.seed, max_new_tokens=asked.max_tokens
        )
    forward = dataclasses.replace(step_settings(config, initial.student, mesh, 0).forward, remat="none")

    def measure(params: Any) -> dict[str, float]:
        engine.sampler = Sampler(initial.student, params, forward)  # a copy of the weights, gone when it has answered
        try:
            return readings.measure(engine)
        finally:
            engine.sampler = None

    return measure


def _check_positions(config: config_dict.ConfigDict, student: StudentConfig) -> None:
    """Rows may be longer than the student was made for only where RoPE stretches: then a line says so."""
    longest = student.max_position_embeddings
    if config.rows.length <= longest:
        return
    if not (student.yarn or student.llama3):
        raise UserError(f"rows.length: {config.rows.length}: the student has {longest} positions: must not be more")
    say(f"warning: rows.length: {config.rows.length}: beyond the student's {longest} positions: RoPE stretches")


def step_settings(
    config: config_dict.ConfigDict, student: StudentConfig, mesh: Mesh, max_slots: int, platform: str = ""
) -> StepSettings:
    """What the programs of this config are compiled for, on `platform` (empty: this machine's).

    Raises UserError where the mesh does not divide the student, or the rows are no whole number of splash tiles.
    """
    check_divides(mesh, student)
    by_platform = {"tpu": "splash", "gpu": "gpu"}.get(platform or jax.default_backend(), "xla")
    attention = by_platform if config.attention == "auto" else config.attention
    if attention == "splash":
        tile_size(config.rows.length)
    return StepSettings(
        student=student,
        forward=ForwardOptions(config.compute_dtype, attention, config.remat, mesh),
        objective=config.objective,
        loss=PreferenceOptions(**config.loss.to_dict()),
        logits_chunk=config.logits_chunk,
        max_slots=max_slots,
    )


def abstract_state(
    config: config_dict.ConfigDict, student: StudentConfig, mesh: Mesh, optimizer: optax.GradientTransformation
) -> dict[str, Any]:
    """{"params", "opt_state"} as ShapeDtypeStructs, each with its place on the mesh."""
    params = abstract_params(student, config.param_dtype)
    state = {"params": params, "opt_state": jax.eval_shape(optimizer.init, as_float32(params))}
    return {name: with_shardings(tree, param_shardings(mesh, tree)) for name, tree in state.items()}


def as_float32(params: Any) -> Any:
    """Parameters as the optimizer sees them."""
    return jax.tree.map(
        lambda p: (
            jax.ShapeDtypeStruct(p.shape, jnp.float32) if isinstance(p, jax.ShapeDtypeStruct) else p.astype(jnp.float32)
        ),
        params,
    )


def _tokens(
    config: config_dict.ConfigDict, folder: str, split: str, tokenizer: Any, workdir: epath.Path, main: bool
) -> TokenizedData:
    # Each process builds its own: two that write one cache would trip over each other.
    own = f"process-{jax.process_index()}" if jax.process_count() > 1 else ""
    beside = Path.home() / ".cache" / "cogpo-jax" / "tokens" if is_remote(workdir) else workdir / "token_cache"
    cache = Path(config.token_cache.dir or beside) / own
    with Bar(f"tokenising {split}", 1, quiet=not main) as bar:
        data = load_tokens(folder, split, config.objective, tokenizer, settings.text_format(config), cache, bar.at)
    betas = settings.resolve_beta(config.objective, config.beta, data.gaps, data.betas)
    return dataclasses.replace(data, betas=betas)


def _plan(config: config_dict.ConfigDict, data: TokenizedData, mesh: Mesh, *, shuffle: bool) -> EpochPlan:
    shards = row_shards(mesh)
    shapes = default_shapes(config.rows.per_device * shards, config.rows.length, shards)
    return EpochPlan(
        data.lengths,
        data.response_offsets,
        data.pair_offsets,
        data.chosen,
        data.rejected,
        groups_per_step=config.batch.groups,
        shapes=shapes[: config.rows.shapes],
        seed=config.seed,
        pairwise=config.objective != "sft",
        shuffle=shuffle,
    )


def _write_run_files(
    config: config_dict.ConfigDict,
    workdir: epath.Path,
    initial: Initial,
    data: TokenizedData,
    plan: EpochPlan,
    total_steps: int,
) -> None:
    """What says which run this workdir is; refuses records that changed since it began."""
    path = workdir / "plan.json"
    if path.is_file() and (old := json.loads(path.read_text())["data_digest"]) != data.digest:
        raise UserError(
            f"data: {config.data}: its token ids changed since this run began, with the records or the tokenizer "
            f"(digest {old[:12]} then, {data.digest[:12]} now); take a new workdir"
        )
    saved = workdir / STUDENT_FILE
    if saved.is_file() and StudentConfig.from_hf(saved) != initial.student:
        raise UserError(f"model: {config.model}: not the student that {workdir} began with; take a new workdir")
    if jax.process_index() != 0:
        return
    dropped = {reason: count for reason, count in plan.drops.items() if count}
    described = {
        "data_digest": data.digest,
        "lengths": length_summary(data),
        "groups": len(plan.groups),
        "dropped": dropped,
        "split_groups": plan.split_groups,
        "repeated_responses": plan.repeated_responses,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": total_steps,
        "shapes": [[s.rows, s.length] for s in plan.shapes],
    }
    write_json(path, described)
    write_json(workdir / "config.json", config.to_dict())
    write_json(workdir / STUDENT_FILE, initial.student.to_hf())
    own = workdir / TOKENIZER_FOLDER
    if is_remote(workdir) or not own.is_dir():
        with contextlib.nullcontext(own) if is_remote(workdir) else atomic_folder(own) as folder:
            # Their content alone: that a source is read-only is not to be inherited.
            for name in tokenizer_files(initial.tokenizer_folder):
                write_atomic(folder / name, (initial.tokenizer_folder / name).read_bytes())
            if settings_of_generation := generation_config(initial.tokenizer_folder):
                write_json(folder / "generation_config.json", settings_of_generation)
    say(f"{len(plan.groups)} groups, {total_steps} steps; dropped: {dropped or 'nothing'}")
