"""The same records as ArrayRecord files, which tfds and grain read by index: one file for each TFRecord shard.

`tfds.builder_from_directory(folder / "groups").as_data_source("train")` opens them without TensorFlow; so does
`grain.sources.ArrayRecordDataSource`, giving the bytes of each tf.train.Example.
"""

import os
from pathlib import Path
from typing import Any

from cogpo_jax.atomic import atomic_folder, write_atomic
from cogpo_jax.errors import UserError
from cogpo_jax.records import tfds_metadata, tfrecord
from cogpo_jax.records.manifest import verify_manifest
from cogpo_jax.records.schema import GROUP_FEATURES, SFT_FEATURES

_FEATURES = {"sft": SFT_FEATURES, "groups": GROUP_FEATURES}
_OPTIONS = "group_size:1"  # each record can be read by itself; tfds writes so too


def write_array_record(folder: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Writes the records of `folder`, verified, as `output/{sft,groups}`, whole or not at all, replacing what is there.

    Equal records give equal files. Raises UserError where the package array_record is missing, or the folder is
    damaged.
    """
    writer = _module().ArrayRecordWriter
    manifest = verify_manifest(folder)
    with atomic_folder(output, overwrite=True) as staging:
        for name, splits in manifest["datasets"].items():
            (staging / name).mkdir()
            entries: dict[str, list[dict[str, Any]]] = {}
            for split, described in splits.items():
                entries[split] = [
                    _copy_shard(writer, Path(folder), staging, (name, split, i, described["shards"]))
                    for i in range(described["shards"])
                ]
            info = tfds_metadata.dataset_info_json(name, entries, "array_record")
            write_atomic(staging / name / tfds_metadata.INFO_FILE, info)
            write_atomic(staging / name / tfds_metadata.FEATURES_FILE, tfds_metadata.features_json(_FEATURES[name]))
    return Path(output)


def _module() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise UserError("also: array_record: needs the package array_record (pip install array_record)") from error
    return array_record_module


def _copy_shard(writer: Any, folder: Path, staging: Path, shard: tuple[str, str, int, int]) -> dict[str, Any]:
    path = staging / tfds_metadata.shard_name(*shard, "array_record")
    out, records = writer(str(path), _OPTIONS), 0
    for data in tfrecord.read_records(folder / tfds_metadata.shard_name(*shard)):
        out.write(data)
        records += 1
    out.close()
    return {"records": records, "bytes": path.stat().st_size}
