"""A folder of records: `sft/` and `groups/` (one tfds data set each) below one manifest.json.

Writing is staged: everything is written under `.staging`, then moved to its place, the manifest last. A folder without
a manifest is not data, so a run killed at any moment leaves either the old records, or none, never a mixture. One
writer per folder at a time. Records are dealt to shards in turn, and read back in the order they were written in.

manifest.json says what belongs to the folder, to the byte:

schema_version  of the records
datasets        {sft|groups: {split: {records, shards, counts}}}; counts by kind and gap, or by origin
shards          {path below the folder: {sha256, bytes, records}}
metadata        {path: {sha256, bytes}} of features.json and dataset_info.json
info            what the writer adds: rows read and dropped by reason, config and prompt hashes
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from cogpo_jax.atomic import atomic_folder, replace_file, write_atomic
from cogpo_jax.errors import UserError
from cogpo_jax.records import example, schema, tfrecord
from cogpo_jax.records.example import FeatureTable
from cogpo_jax.records.schema import Group, SftExample

MANIFEST = "manifest.json"
DATASETS = ("sft", "groups")
_CHUNK = 1 << 20
SPLITS = ("train", "validation")
_STAGING = ".staging"


@dataclass(frozen=True)
class _Dataset:
    """How the records of one data set are checked, stored and counted."""

    features: FeatureTable
    validate: Callable[[Any], None]
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    count: Callable[[Any], Counter[str]]


def _count_sft(sft: SftExample) -> Counter[str]:
    return Counter({f"origin/{sft.origin or 'none'}": 1})


def _count_group(group: Group) -> Counter[str]:
    return (
        Counter(f"gap/{pair.gap}" for pair in group.pairs)
        + Counter(f"kind/{response.kind}" for response in group.responses)
        + Counter({"pairs": len(group.pairs), "responses": len(group.responses)})
    )


_DATASETS = {
    "sft": _Dataset(schema.SFT_FEATURES, schema.validate_sft, schema.encode_sft, schema.decode_sft, _count_sft),
    "groups": _Dataset(
        schema.GROUP_FEATURES, schema.validate_group, schema.encode_group, schema.decode_group, _count_group
    ),
}


def write_data(
    folder: str | os.PathLike[str],
    sft: Mapping[str, Iterable[SftExample]] | None = None,
    groups: Mapping[str, Iterable[Group]] | None = None,
    shards: int = 1,
    info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the records of each split as `shards` files (fewer for fewer records) and returns the manifest.

    The iterables (split name -> records) are consumed once, in order, one record in memory at a time. `info` (JSON:
    drop counts, config and prompt hashes) goes into the manifest under `info`; it is read after the last record, so
    the iterables may still count into it. Equal records and info give equal bytes, so `info` holds no times.
    `folder` may be `gs://`; the records that it held are replaced.
    Raises UserError naming the data set, split and record for a record that `validate_*` refuses; nothing is changed
    then.
    """
    if shards < 1:
        raise UserError(f"shards: {shards}: must be at least 1")
    root = epath.Path(folder)
    data = {name: splits for name, splits in (("sft", sft), ("groups", groups)) if splits}
    for name, splits in data.items():
        for split in splits:
            if split not in SPLITS:
                raise UserError(f"{name} split: {split!r}: must be {' or '.join(SPLITS)}")
    with ExitStack() as cleanup:
        staging = _make_staging(root, cleanup)
        manifest: dict[str, Any] = {
            "schema_version": schema.SCHEMA_VERSION,
            "datasets": {},
            "shards": {},
            "metadata": {},
            "info": info if info is not None else {},
        }
        for name, splits in data.items():
            described = {s: _write_split(staging, name, s, records, shards) for s, records in splits.items()}
            manifest["datasets"][name] = {split: summary for split, (summary, _) in described.items()}
            for _, entries in described.values():
                manifest["shards"] |= entries
            shards_by_split = {split: list(entries.values()) for split, (_, entries) in described.items()}
            manifest["metadata"] |= _write_metadata(staging, name, shards_by_split)
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomic(staging / MANIFEST, text)
        _publish(staging, root, [*manifest["shards"], *manifest["metadata"]])
    return manifest


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Makes a local folder where there is none yet; raises UserError where it cannot be one."""
    if not _is_remote(folder):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{os.fspath(folder)}: cannot be written ({error.strerror}): must be a folder") from error


def _make_staging(folder: epath.Path, cleanup: ExitStack) -> Path:
    if _is_remote(folder):  # object stores cannot rename: stage on local disk, then upload
        return Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="records-")))
    check_folder(folder)
    staging = Path(folder) / _STAGING
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed run
    staging.mkdir()
    cleanup.callback(shutil.rmtree, staging, ignore_errors=True)
    return staging


def _write_split(
    staging: Path, name: str, split: str, records: Iterable[Any], shards: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Writes one split; returns its summary and the manifest entries of its shards, by path relative to the folder."""
    dataset = _DATASETS[name]
    (staging / name).mkdir(exist_ok=True)
    counts: Counter[str] = Counter()
    number = 0
    with ExitStack() as stack:
        writers: list[_ShardWriter] = []
        for number, record in enumerate(records, start=1):
            try:
                dataset.validate(record)
                data = dataset.encode(record)
            except UserError as error:
                where = f"{name} {split} record {number - 1} (problem_id {record.problem_id!r})"
                raise UserError(f"{where}: {error}") from error
            if len(writers) < min(number, shards):
                path = staging / name / f"{split}-{len(writers)}.open"
                writers.append(stack.enter_context(_ShardWriter(path)))
            writers[(number - 1) % shards].add(data)
            counts += dataset.count(record)
    entries = {}
    for i, writer in enumerate(writers):
        final = example.shard_name(name, split, i, len(writers))
        writer.path.rename(staging / final)
        entries[final] = writer.entry()
    summary = {"records": number, "shards": len(writers), "counts": dict(sorted(counts.items()))}
    return summary, entries


class _ShardWriter:
    """An open shard: frames records into a file, and hashes and counts what it writes."""

    def __init__(self, path: Path):
        self.path = path
        self.records = self.bytes = 0
        self._sha256 = hashlib.sha256()
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        with self._file as f:
            f.flush()
            os.fsync(f.fileno())

    def add(self, data: bytes) -> None:
        framed = tfrecord.frame(data)
        self._file.write(framed)
        self._sha256.update(framed)
        self.records += 1
        self.bytes += len(framed)

    def entry(self) -> dict[str, Any]:
        return {"sha256": self._sha256.hexdigest(), "bytes": self.bytes, "records": self.records}


def _write_metadata(staging: Path, name: str, shards: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    texts = {
        f"{name}/{example.FEATURES_FILE}": example.features_json(_DATASETS[name].features),
        f"{name}/{example.INFO_FILE}": example.dataset_info_json(name, shards),
    }
    for path, text in texts.items():
        write_atomic(staging / path, text)
    encoded = {path: text.encode("utf-8") for path, text in texts.items()}
    return {path: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)} for path, d in encoded.items()}


def _is_remote(folder: str | os.PathLike[str]) -> bool:
    return "://" in os.fspath(folder)


def _publish(staging: Path, folder: epath.Path, paths: list[str]) -> None:
    """Moves staged files to their places: old manifest away first, new one last, so that no mixture is ever valid."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in DATASETS:
        if (folder / name).exists():
            for old in (folder / name).iterdir():
                if _is_ours(name, old.name) and f"{name}/{old.name}" not in paths:
                    old.unlink()
    for path in [*paths, MANIFEST]:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_remote(folder):
            _upload(staging / path, target)
        else:
            replace_file(staging / path, target)


def _is_ours(dataset: str, name: str) -> bool:
    return (name.startswith(f"{dataset}-") and ".tfrecord-" in name) or name in example.FILES


def _upload(source: Path, target: epath.Path) -> None:
    with open(source, "rb") as f, target.open("wb") as t:
        shutil.copyfileobj(f, t, length=_CHUNK)


def splits(folder: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """The number of records of each split of each data set: `{"groups": {"train": 120, "validation": 14}, ...}`."""
    datasets = load_manifest(folder)["datasets"]
    return {name: {split: entry["records"] for split, entry in found.items()} for name, found in datasets.items()}


def read_sft(folder: str | os.PathLike[str], split: str = "train", verify: bool = True) -> Iterator[SftExample]:
    """The SFT examples of a split, in the order they were written in; `read_groups` says what is checked."""
    return _read(folder, "sft", split, verify)


def read_groups(folder: str | os.PathLike[str], split: str = "train", verify: bool = True) -> Iterator[Group]:
    """The groups of a split, in the order they were written in, one in memory at a time.

    The folder is verified against its manifest at the call (`verify=False` if it just was), each record's checksums
    and content as it is read. Raises UserError naming the file and record, or the splits there are.
    """
    return _read(folder, "groups", split, verify)


def _read(folder: str | os.PathLike[str], name: str, split: str, verify: bool) -> Iterator[Any]:
    manifest = verify_manifest(folder) if verify else load_manifest(folder)
    found = manifest["datasets"].get(name, {})
    if split not in found:
        have = f"it has {', '.join(sorted(found))}" if found else f"it has no {name} at all"
        raise UserError(f"{os.fspath(folder)}: {name} split {split!r}: no such records; {have}")
    count = found[split]["shards"]
    paths = [epath.Path(folder) / example.shard_name(name, split, i, count) for i in range(count)]
    return _read_in_turn(paths, _DATASETS[name])


def _read_in_turn(paths: list[epath.Path], dataset: _Dataset) -> Iterator[Any]:
    readers = [_read_shard(path, dataset) for path in paths]
    while readers:
        for i, reader in enumerate(readers):
            try:
                yield next(reader)
            except StopIteration:
                # Records were dealt in turn from the first shard on: where one ends, all after it have ended as well.
                readers = readers[:i]
                break


def _read_shard(path: epath.Path, dataset: _Dataset) -> Iterator[Any]:
    for number, data in enumerate(tfrecord.read_records(path)):
        try:
            record = dataset.decode(data)
            dataset.validate(record)
        except UserError as error:
            raise UserError(f"{path}: record {number}: {error}") from error
        yield record


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
    if version != schema.SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version: {version}: this version reads {schema.SCHEMA_VERSION}")
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


def write_array_record(folder: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Writes the records of `folder`, verified, as `output/{sft,groups}`, whole or not at all, replacing what is there.

    One file for each TFRecord shard, which tfds and grain read by index without TensorFlow
    (`tfds.builder_from_directory(folder / "groups").as_data_source("train")`,
    `grain.sources.ArrayRecordDataSource`). Equal records give equal files. Raises UserError where the package
    array_record is missing, or the folder is damaged.
    """
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise UserError("also: array_record: needs the package array_record (pip install array_record)") from error
    manifest = verify_manifest(folder)
    with atomic_folder(output, overwrite=True) as staging:
        for name, splits in manifest["datasets"].items():
            (staging / name).mkdir()
            entries: dict[str, list[dict[str, Any]]] = {}
            for split, described in splits.items():
                entries[split] = [
                    _copy_shard(
                        array_record_module.ArrayRecordWriter,
                        Path(folder),
                        staging,
                        (name, split, i, described["shards"]),
                    )
                    for i in range(described["shards"])
                ]
            info = example.dataset_info_json(name, entries, "array_record")
            write_atomic(staging / name / example.INFO_FILE, info)
            write_atomic(staging / name / example.FEATURES_FILE, example.features_json(_DATASETS[name].features))
    return Path(output)


def _copy_shard(writer: Any, folder: Path, staging: Path, shard: tuple[str, str, int, int]) -> dict[str, Any]:
    path = staging / example.shard_name(*shard, "array_record")
    out, records = writer(str(path), "group_size:1"), 0  # each record can be read by itself; tfds writes so too
    for data in tfrecord.read_records(folder / example.shard_name(*shard)):
        out.write(data)
        records += 1
    out.close()
    return {"records": records, "bytes": path.stat().st_size}
