"""Checkpoints through orbax: written in the background, kept N, every array checked on restore; and their export.

    workdir/checkpoints/<step>/{params, opt_state, meta}

orbax restores a flipped bit without a word, so `meta` holds a checksum per array, and one of itself. The newest whole
checkpoint is used; a damaged one is named, moved to workdir/damaged_checkpoints, and the one before it taken.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cogpo_jax.atomic import check_client, check_writable
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.progress import say
from cogpo_jax.sharding import array_path, check_divides, make_mesh, param_shardings
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import abstract_params
from cogpo_jax.student.weights import PARAM_DTYPES, to_hf
from cogpo_jax.text import TextFormat, load_tokenizer, resolved
from cogpo_jax.training import hosts

FORMAT = 2
STUDENT_FILE = "student.json"  # a workdir's config.json of the student
TOKENIZER_FOLDER = "tokenizer"
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class Checkpoints:
    """The checkpoints of a workdir. `say` takes one line about anything a person should know."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        keep: int | None = None,
        *,
        read_only: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.folder = epath.Path(workdir) / "checkpoints"
        self._say, self._read_only = say, read_only
        self._manager = ocp.CheckpointManager(
            self.folder if "://" in str(self.folder) else self.folder.absolute(),
            item_names=("params", "opt_state", "meta"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,  # of a process that was killed while it wrote
            ),
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were written whole, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, params: Any, opt_state: Any, meta: dict[str, Any]) -> None:
        """Starts writing the state after `step` steps; returns as soon as the arrays may be donated."""
        checksums = {"params": array_checksums(params), "opt_state": array_checksums(opt_state)}
        meta = {**meta, "format": FORMAT, "step": step, "checksums": checksums}
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                meta=ocp.args.JsonSave({**meta, "digest": _digest(meta)}),
            ),
        )
        if not saved:  # orbax passes over a step that is not newer than the newest, without a word
            raise RunError(f"checkpoint {step}: not written: {self.folder} has steps {self.steps()}")

    def meta(self, step: int) -> dict[str, Any]:
        """The metadata of one checkpoint. Raises UserError where it is damaged."""
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if meta.get("format") != FORMAT:
            raise UserError(f"meta: format {meta.get('format')!r}: this version reads {FORMAT}")
        if meta.pop("digest", None) != _digest(meta):
            raise UserError("meta: checksum differs from the one saved with it")
        return meta

    def structure(self, item: str, step: int) -> Any:
        """Shapes and dtypes of an item ("params" or "opt_state") of one checkpoint, as it was saved."""
        return self._manager.item_metadata(step)[item]

    def param_dtype(self, steps: Sequence[int]) -> str:
        """The parameters' dtype, from the newest of `steps` whose metadata can be read (it is the same in all)."""
        for step in reversed(steps):
            with contextlib.suppress(Exception):  # `restore` will say what is wrong with it
                return str(self.meta(step)["param_dtype"])
        raise UserError(f"checkpoints: {self.folder}: the metadata of steps {list(steps)} cannot be read")

    def restore(self, abstract: dict[str, Any], step: int | None = None) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """(step, {item: tree}, meta) of the newest undamaged checkpoint, or of exactly `step`.

        abstract: {"params": ..., "opt_state": ...} (or only one of them) as ShapeDtypeStructs with shardings: any mesh.
        Raises UserError where no checkpoint can be used, naming what is wrong with each.
        """
        candidates = [step] if step is not None else self.steps()[::-1]
        hosts.check_same({f"checkpoints in {self.folder}": candidates})
        faults: dict[int, str] = {}
        for candidate in candidates:
            fault = ""
            try:
                items, meta = self._restore(candidate, abstract)
            except UserError as error:
                fault = str(error)
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged or missing file
                fault = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if hosts.all_agree(not fault):  # else one host would go on from another step than the others
                if faults:
                    self._say(f"checkpoint of step {candidate} is used instead")
                    self._set_aside(faults)
                return candidate, items, meta
            faults[candidate] = fault or "damaged for another host"
            self._say(f"damaged checkpoint in {self.folder}: step {candidate}: {faults[candidate]}")
        named = "; ".join(f"step {step}: {fault}" for step, fault in faults.items()) or "there is none"
        raise UserError(f"checkpoints: {self.folder}: none can be restored ({named})")

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Makes room for the steps' new checkpoints: orbax would not write a step that it has."""
        if self._read_only:
            return
        if jax.process_index() == 0:
            for step in steps:
                target = self.folder.parent / "damaged_checkpoints" / str(step)
                target.parent.mkdir(exist_ok=True)
                if target.exists():  # damaged before
                    target.rmtree()
                (self.folder / str(step)).rename(target)
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def _restore(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        meta = self.meta(step)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        items = {name: restored[name] for name in abstract}
        for name, tree in items.items():
            saved = meta["checksums"][name]
            found = array_checksums(tree)
            wrong = sorted(path for path in saved.keys() | found.keys() if saved.get(path) != found.get(path))
            if wrong:
                raise UserError(f"{name}: {', '.join(wrong[:5])}: checksum differs from the one saved with it")
        return items, meta

    def wait(self) -> None:
        """Blocks until everything started is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self._manager.close()


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def with_shardings(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of `tree` placed by `shardings`: what `restore` fills."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


@jax.jit
def _mixed_sums(x: jax.Array) -> jax.Array:
    """Two uint32 sums over all elements, each mixed with its position: any flipped bit or swap changes them."""
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]

    def mix(salt: int) -> jax.Array:  # MurmurHash3's finaliser over value and position
        h = words ^ (index * np.uint32(0x9E3779B1) + np.uint32(salt))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = (h ^ (h >> shift)) * np.uint32(factor)
        return (h ^ (h >> 16)).sum(dtype=jnp.uint32)

    return jnp.stack([mix(0), mix(0x5BD1E995)])


def array_checksums(tree: Any) -> dict[str, str]:
    """{path: dtype, shape and 64-bit checksum} of every array, equal on any mesh; integer sums commute."""
    sums = {
        array_path(path): (f"{leaf.dtype}{list(leaf.shape)}", _mixed_sums(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {path: f"{kind}:{int(s[0]):08x}{int(s[1]):08x}" for path, (kind, s) in sums.items()}


def tree_digest(tree: Any) -> str:
    """Hex SHA-256 over all arrays' checksums: names a set of weights."""
    return hashlib.sha256(json.dumps(array_checksums(tree), sort_keys=True).encode()).hexdigest()


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


def export_checkpoint(
    workdir: str, output: str, *, step: int | None = None, dtype: str = "bfloat16", overwrite: bool = False
) -> dict[str, Any]:
    """Restores the newest undamaged checkpoint (or exactly `step`) on one device and writes it; returns what it wrote.

    Raises UserError where the workdir holds no such checkpoint, or the output exists.
    """
    if dtype not in PARAM_DTYPES:
        raise UserError(f"--dtype: {dtype!r}: must be one of {', '.join(PARAM_DTYPES)}")
    check_client("--workdir", workdir)
    check_writable("--output", output)
    run = epath.Path(workdir)
    if not (run / STUDENT_FILE).is_file():
        raise UserError(f"--workdir: {workdir}: holds no {STUDENT_FILE}; give the workdir of a run of `cogpo train`")
    target = epath.Path(output)
    here, there = os.path.realpath(workdir), os.path.realpath(output)
    if "://" in workdir or "://" in output:
        here, there = workdir.rstrip("/"), output.rstrip("/")
    if f"{here}/".startswith(f"{there}/") or f"{there}/".startswith(f"{here}/"):
        raise UserError(f"--output: {output}: must be apart from the run in {workdir}: neither of them in the other")
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output: {output}: exists and is not empty; give another name, or --overwrite")
    tokenizer_folder = Path(run / TOKENIZER_FOLDER)
    text_format = TextFormat(**json.loads((run / "config.json").read_text())["text"])
    end_token = resolved(load_tokenizer(tokenizer_folder), text_format).end_token
    mesh = make_mesh({}, jax.devices()[:1])
    config, params, found = load_params(workdir, mesh, step=step, say=say)
    to_hf(config, params, output, dtype, tokenizer_folder, end_token=end_token, overwrite=overwrite)
    parameters = sum(x.size for x in jax.tree.leaves(params))
    return {"step": found, "output": output, "dtype": dtype, "parameters": parameters}
