"""manifest.json, above the data sets of a folder: what belongs to it, to the byte; loading and verifying it.

schema_version  of the records
datasets        {sft|groups: {split: {records, shards, counts}}}; counts by kind and gap, or by origin
shards          {path below the folder: {sha256, bytes, records}}
metadata        {path: {sha256, bytes}} of features.json and dataset_info.json
info            what the writer adds: rows read and dropped by reason, config and prompt hashes
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from cogpo_jax.errors import UserError
from cogpo_jax.records import tfrecord
from cogpo_jax.records.schema import SCHEMA_VERSION

MANIFEST = "manifest.json"
DATASETS = ("sft", "groups")
_CHUNK = 1 << 20


def load_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a folder; raises UserError where there is none, or it cannot be read."""
    path = epath.Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        version = manifest["schema_version"]
        if not all(isinstance(manifest[key], dict) for key in ("datasets", "shards", "metadata", "info")):
            raise TypeError("not objects")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: must be a folder of records that was written to its end") from error
    except NotADirectoryError as error:
        raise UserError(f"{os.fspath(folder)}: not a folder: must be a folder of records") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error!r}): must be the manifest of a folder of records") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version: {version}: this version reads {SCHEMA_VERSION}")
    return manifest


def verify_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Checks that the folder holds exactly the files of its manifest, byte for byte, and returns the manifest.

    Reads every shard once. Raises UserError naming the first file that is missing, extra or changed, and in a shard the
    record and byte offset where the damage begins, if a checksum tells.
    """
    root = epath.Path(folder)
    manifest = load_manifest(root)
    present = {f"{name}/{path.name}" for name in DATASETS if (root / name).exists() for path in (root / name).iterdir()}
    if missing := sorted((manifest["shards"].keys() | manifest["metadata"].keys()) - present):
        raise UserError(f"{root / missing[0]}: missing, though {MANIFEST} lists it")
    extra = sorted(p for p in present - manifest["shards"].keys() if ".tfrecord" in p)
    if extra:
        raise UserError(f"{root / extra[0]}: not listed in {MANIFEST}: remove it, or write the records again")
    for path, entry in sorted((manifest["metadata"] | manifest["shards"]).items()):
        _verify_file(root / path, entry)
    return manifest


def _verify_file(path: epath.Path, entry: Mapping[str, Any]) -> None:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    if size == entry["bytes"] and digest.hexdigest() == entry["sha256"]:
        return
    if "records" in entry:
        for _ in tfrecord.read_records(path):  # raises where the damage shows: a better message than the one below
            pass
    found = f"{size} bytes, not {entry['bytes']}" if size != entry["bytes"] else "another sha256"
    raise UserError(f"{path}: changed since it was written ({found}): does not match {MANIFEST}")
