"""The reference cache: summed log-probs of the reference model, computed once per response, kept by content.

    <dir>/<key>/meta.json, part-<sha256>.npy ...

The key names all that decides the numbers: the weights' checksum, compute dtype, attention back end, `NUMERICS`. Not
the mesh and not the packing: those move a bfloat16 log-prob a little, which the drift check bounds.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from cogpo_jax.atomic import write_atomic, write_json
from cogpo_jax.errors import UserError

NUMERICS = 1  # bump by hand when the code's log-probs change by more than rounding
_ENTRY = np.dtype([("digest", "S16"), ("logp", "<f4"), ("tokens", "<i4")])


def reference_key(weights_digest: str, compute_dtype: str, attention: str) -> dict[str, Any]:
    """What names a set of reference log-probs."""
    return {"weights": weights_digest, "compute_dtype": compute_dtype, "attention": attention, "numerics": NUMERICS}


class ReferenceCache:
    """Log-probs of one reference under `folder/<key>`; parts are added whole, so a killed pass loses at most one."""

    def __init__(self, folder: str | os.PathLike[str], key: Mapping[str, Any], say: Callable[[str], None] = print):
        text = json.dumps(dict(key), sort_keys=True)
        self.folder = epath.Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._say = say
        self._check_meta(dict(key))
        self._entries = self._load()

    def _check_meta(self, key: dict[str, Any]) -> None:
        path = self.folder / "meta.json"
        if not path.is_file():
            write_json(path, key)
        elif json.loads(path.read_text()) != key:
            raise UserError(f"reference_cache.dir: {self.folder}: holds another reference's log-probs; remove it")

    def _load(self) -> np.ndarray:
        parts = [np.empty(0, _ENTRY)]
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if not path.name.startswith("part-"):
                continue
            data = path.read_bytes()
            if path.stem != f"part-{hashlib.sha256(data).hexdigest()[:32]}":
                self._say(f"reference cache: {path} is damaged: left out, its log-probs are computed again")
                continue
            parts.append(np.load(io.BytesIO(data), allow_pickle=False))
        return _sorted(np.concatenate(parts))

    def lookup(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(logps [R] float32, NaN where unknown; tokens [R] int32) of response digests [R, 16] uint8."""
        wanted = np.ascontiguousarray(digests).view("S16").reshape(-1)
        logps, tokens = np.full(len(wanted), np.nan, np.float32), np.zeros(len(wanted), np.int32)
        if len(self._entries) and len(wanted):
            at = np.searchsorted(self._entries["digest"], wanted).clip(0, len(self._entries) - 1)
            known = self._entries["digest"][at] == wanted
            logps[known], tokens[known] = self._entries["logp"][at[known]], self._entries["tokens"][at[known]]
        return logps, tokens

    def add(self, digests: np.ndarray, logps: np.ndarray, tokens: np.ndarray, *, write: bool = True) -> None:
        """Adds entries, and a part file with them (`write`: on one process only)."""
        entries = np.empty(len(digests), _ENTRY)
        entries["digest"] = np.ascontiguousarray(digests).view("S16").reshape(-1)
        entries["logp"], entries["tokens"] = logps, tokens
        if not np.isfinite(entries["logp"]).all():
            raise UserError("reference: a log-prob is not finite; the reference weights are damaged")
        if write:
            buffer = io.BytesIO()
            np.save(buffer, entries, allow_pickle=False)
            name = hashlib.sha256(buffer.getvalue()).hexdigest()[:32]
            write_atomic(self.folder / f"part-{name}.npy", buffer.getvalue())
        self._entries = _sorted(np.concatenate([self._entries, entries]))


def _sorted(entries: np.ndarray) -> np.ndarray:
    _, first = np.unique(entries["digest"], return_index=True)
    return entries[first]
