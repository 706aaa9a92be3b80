"""Checkpoints through orbax: written in the background, kept N, every array checked on restore.

    workdir/checkpoints/<step>/{params, opt_state, meta}

orbax restores a flipped bit without a word, so `meta` holds a checksum per array. The newest whole checkpoint is used;
a damaged one is named and the one before it taken.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from cogpo_jax.errors import UserError
from cogpo_jax.training.checksum import array_checksums

FORMAT = 1


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
        self._say = say
        self._manager = ocp.CheckpointManager(
            self.folder if "://" in str(self.folder) else self.folder.absolute(),
            item_names=("params", "opt_state", "meta"),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, read_only=read_only, create=not read_only),
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were written whole, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, params: Any, opt_state: Any, meta: dict[str, Any]) -> None:
        """Starts writing the state after `step` steps; returns as soon as the arrays may be donated."""
        checksums = {"params": array_checksums(params), "opt_state": array_checksums(opt_state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                meta=ocp.args.JsonSave({**meta, "format": FORMAT, "step": step, "checksums": checksums}),
            ),
        )

    def meta(self, step: int) -> dict[str, Any]:
        """The metadata of one checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def restore(self, abstract: dict[str, Any], step: int | None = None) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """(step, {item: tree}, meta) of the newest undamaged checkpoint, or of exactly `step`.

        abstract: {"params": ..., "opt_state": ...} (or only one of them) as ShapeDtypeStructs with shardings: any mesh.
        Raises UserError where no checkpoint can be used, naming what is wrong with each.
        """
        candidates = [step] if step is not None else self.steps()[::-1]
        faults: list[str] = []
        for candidate in candidates:
            try:
                items, meta = self._restore(candidate, abstract)
            except UserError as error:
                fault = str(error)
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged or missing file
                fault = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            else:
                if faults:
                    self._say(f"checkpoint {candidate} is used instead")
                return candidate, items, meta
            faults.append(f"step {candidate}: {fault}")
            self._say(f"damaged checkpoint in {self.folder}: {faults[-1]}")
        raise UserError(f"checkpoints: {self.folder}: none can be restored ({'; '.join(faults) or 'there is none'})")

    def _restore(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        meta = self.meta(step)
        if meta.get("format") != FORMAT:
            raise UserError(f"format {meta.get('format')!r}: this version reads {FORMAT}")
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


def with_shardings(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of `tree` placed by `shardings`: what `restore` fills."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
