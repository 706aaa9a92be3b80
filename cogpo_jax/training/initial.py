"""Where a run's first weights come from: a Hugging Face folder, an earlier run's workdir, or a seed."""

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from cogpo_jax.atomic import is_remote
from cogpo_jax.errors import UserError
from cogpo_jax.sharding import check_divides, param_shardings
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import abstract_params, init_params
from cogpo_jax.student.weights import from_hf
from cogpo_jax.training.checkpoint import Checkpoints, with_shardings

STUDENT_FILE = "student.json"  # a workdir's config.json of the student
TOKENIZER_FOLDER = "tokenizer"


@dataclasses.dataclass(frozen=True)
class Initial:
    """The student's architecture, its tokenizer's folder, and a way to load its first weights onto a mesh."""

    student: StudentConfig
    tokenizer_folder: Path
    load: Callable[[Mesh], Any]


def resolve(init_from: str, model: str, tokenizer: str, *, seed: int, param_dtype: str, say: Any) -> Initial:
    """Reads what `init_from` is, without loading weights. Raises UserError where it is neither kind of folder."""
    if not init_from:
        student = StudentConfig.from_hf(model)
        return Initial(student, _local(tokenizer), lambda mesh: _random(student, mesh, seed, param_dtype))
    folder = epath.Path(init_from)
    if (folder / "checkpoints").is_dir():
        student = StudentConfig.from_hf(folder / STUDENT_FILE)
        return Initial(
            student,
            _local(tokenizer or folder / TOKENIZER_FOLDER),
            lambda mesh: load_params(init_from, mesh, param_dtype, say=say)[1],
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"init_from: {init_from}: must be a Hugging Face folder or the workdir of an earlier run")
    student = StudentConfig.from_hf(folder)
    return Initial(student, _local(tokenizer or init_from), lambda mesh: from_hf(init_from, mesh, param_dtype)[2])


def _local(folder: str | os.PathLike[str]) -> Path:
    """A tokenizer's folder on local disk: itself, or a copy of an object store's (its weights left out)."""
    if not is_remote(folder):
        return Path(folder)
    copy = Path(tempfile.mkdtemp(prefix="cogpo-tokenizer-"))
    for file in epath.Path(folder).iterdir():
        if file.suffix in (".json", ".txt", ".jinja") and file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def load_params(
    workdir: str | Path, mesh: Mesh, param_dtype: str | None = None, step: int | None = None, *, say: Any
) -> tuple[StudentConfig, Any, int]:
    """(student, parameters, step) of a workdir's newest undamaged checkpoint, or of exactly `step`."""
    student = StudentConfig.from_hf(epath.Path(workdir) / STUDENT_FILE)
    check_divides(mesh, student)
    checkpoints = Checkpoints(workdir, read_only=True, say=say)
    steps = checkpoints.steps()
    if not steps or (step is not None and step not in steps):
        raise UserError(f"step: {step}: {workdir} has checkpoints of steps {steps or 'none'}")
    saved = abstract_params(student, checkpoints.param_dtype(steps if step is None else [step]))
    abstract = with_shardings(saved, param_shardings(mesh, saved))
    found, items, _ = checkpoints.restore({"params": abstract}, step)
    checkpoints.close()
    params = items["params"]
    if param_dtype:
        params = jax.tree.map(lambda p: p.astype(param_dtype), params)
    return student, params, found


def _random(student: StudentConfig, mesh: Mesh, seed: int, param_dtype: str) -> Any:
    check_divides(mesh, student)
    shardings = param_shardings(mesh, abstract_params(student, param_dtype))
    return init_params(student, seed, param_dtype, shardings)
