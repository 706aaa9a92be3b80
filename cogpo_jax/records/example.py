"""A feature table's two forms: tf.train.Example on the protobuf runtime alone (no TensorFlow), and what tfds reads.

The messages are described here and kept in a descriptor pool of their own, so that TensorFlow or tfds, which register
the same names, may be loaded in the same process. `Features.feature` is a protobuf map; on the wire a map is a list of
(key, value) entries, and declared as that list the order of the entries is ours: sorted, so equal examples are equal
bytes on every machine. `tfds.builder_from_directory(folder).as_dataset(split)` opens a folder of shards by its
features.json and dataset_info.json.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from cogpo_jax.errors import UserError

Kind = Literal["bytes", "int64", "float"]

_FLAT = "ragged_flat_values"
_LENGTHS = "ragged_row_lengths_0"

FEATURES_FILE = "features.json"
INFO_FILE = "dataset_info.json"
FILES = (FEATURES_FILE, INFO_FILE)
VERSION = "1.0.0"

_CLASSES = "tensorflow_datasets.core.features"
_DTYPES = {"int64": "int64", "float": "float32"}


@dataclass(frozen=True)
class Feature:
    """One row of a feature table.

    `kind` is the stored type (bytes features hold UTF-8 text), `rank` the number of list levels around a value (0, 1
    or 2), `width` the length of each value where values are fixed tuples (a `(start, end)` span has width 2).
    """

    kind: Kind
    rank: int = 0
    width: int | None = None


FeatureTable = Mapping[str, Feature]


def _describe() -> descriptor_pb2.FileDescriptorProto:
    """The wire format of https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="cogpo_jax/example.proto", package="cogpo_jax", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> descriptor_pb2.DescriptorProto:
        described = file.message_type.add(name=name)
        for number, (field_name, field_type, label, type_name) in enumerate(fields, start=1):
            added = described.field.add(name=field_name, number=number, type=field_type, label=label)
            if type_name:
                added.type_name = f".cogpo_jax.{type_name}"
            if label == field.LABEL_REPEATED and field_type in (field.TYPE_FLOAT, field.TYPE_INT64):
                added.options.packed = True
        return described

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message("BytesList", ("value", field.TYPE_BYTES, many, ""))
    message("FloatList", ("value", field.TYPE_FLOAT, many, ""))
    message("Int64List", ("value", field.TYPE_INT64, many, ""))
    feature = message(
        "Feature",
        ("bytes_list", field.TYPE_MESSAGE, one, "BytesList"),
        ("float_list", field.TYPE_MESSAGE, one, "FloatList"),
        ("int64_list", field.TYPE_MESSAGE, one, "Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for described_field in feature.field:
        described_field.oneof_index = 0
    message("Entry", ("key", field.TYPE_STRING, one, ""), ("value", field.TYPE_MESSAGE, one, "Feature"))
    message("Features", ("feature", field.TYPE_MESSAGE, many, "Entry"))
    message("Example", ("features", field.TYPE_MESSAGE, one, "Features"))
    return file


def _example_class() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_describe())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("cogpo_jax.Example"))


_Example = _example_class()


def encode(values: Mapping[str, Any], table: FeatureTable) -> bytes:
    """Serialises `values` (text as str) by `table`: every feature present, keys sorted, same values = same bytes.

    Nested lists (rank 2) are stored as tfds stores them: `name/ragged_flat_values` and `name/ragged_row_lengths_0`.
    Raises UserError naming the feature for a missing or unknown name and for a value that its kind cannot hold.
    """
    if values.keys() != table.keys():
        raise UserError(
            f"features: {sorted(values.keys() ^ table.keys())}: the record must have exactly {sorted(table)}"
        )
    stored: dict[str, tuple[Kind, list[Any]]] = {}
    for name, feature in table.items():
        value = values[name]
        if feature.rank == 2:
            stored[f"{name}/{_FLAT}"] = (feature.kind, _flatten((v for row in value for v in row), feature.width))
            stored[f"{name}/{_LENGTHS}"] = ("int64", [len(row) for row in value])
        else:
            stored[name] = (feature.kind, _flatten(value if feature.rank else (value,), feature.width))
    example = _Example()
    for name in sorted(stored):
        kind, flat = stored[name]
        entry = example.features.feature.add(key=name)
        target = getattr(entry.value, f"{kind}_list")
        target.SetInParent()  # an empty list still says its type
        try:
            target.value.extend([v.encode("utf-8") for v in flat] if kind == "bytes" else flat)
        except (TypeError, ValueError, AttributeError) as error:  # ValueError: lone surrogates, integers beyond 64 bits
            raise UserError(f"{name}: {_short(flat)}: must be {kind} ({error})") from error
    return example.SerializeToString(deterministic=True)


def decode(data: bytes, table: FeatureTable) -> dict[str, Any]:
    """The values of a serialised example by `table`: the inverse of `encode` (lists come back as tuples).

    Raises UserError for bytes that are no example, for missing, unknown or repeated features, for another type than
    the table's, and for lists that do not have the table's shape.
    """
    try:
        entries = _Example.FromString(data).features.feature
    except DecodeError as error:
        raise UserError("not a tf.train.Example: the record cannot be parsed") from error
    stored = {entry.key: entry.value for entry in entries}
    if len(stored) != len(entries):
        raise UserError("not one of ours: a feature occurs twice in the record")
    values = {}
    for name, feature in table.items():
        if feature.rank == 2:
            flat = _group(name, _take(stored, f"{name}/{_FLAT}", feature.kind), feature.width)
            values[name] = _split(name, flat, _take(stored, f"{name}/{_LENGTHS}", "int64"))
        else:
            flat = _group(name, _take(stored, name, feature.kind), feature.width)
            if feature.rank == 0 and len(flat) != 1:
                raise UserError(f"{name}: {len(flat)} values: exactly one is needed")
            values[name] = flat if feature.rank else flat[0]
    if stored:
        raise UserError(f"features: {sorted(stored)}: not in the record's schema")
    return values


def _flatten(values: Any, width: int | None) -> list[Any]:
    if width is None:
        return list(values)
    values = list(values)
    if any(len(value) != width for value in values):
        raise UserError(f"{_short(values)}: every item must have {width} numbers")
    return [number for value in values for number in value]


def _take(stored: dict[str, Any], name: str, kind: Kind) -> list[Any]:
    if name not in stored:
        raise UserError(f"{name}: missing from the record")
    feature = stored.pop(name)
    found = feature.WhichOneof("kind") or f"{kind}_list"
    if found != f"{kind}_list":
        raise UserError(f"{name}: stored as {found}: must be {kind}_list")
    values = getattr(feature, found).value
    if kind != "bytes":
        return list(values)
    try:
        return [v.decode("utf-8") for v in values]
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _group(name: str, flat: Sequence[Any], width: int | None) -> tuple[Any, ...]:
    if width is None:
        return tuple(flat)
    if len(flat) % width:
        raise UserError(f"{name}: {len(flat)} values: must be a multiple of {width}")
    return tuple(tuple(flat[i : i + width]) for i in range(0, len(flat), width))


def _split(name: str, flat: Sequence[Any], lengths: Sequence[int]) -> tuple[tuple[Any, ...], ...]:
    if any(n < 0 for n in lengths) or sum(lengths) != len(flat):
        raise UserError(f"{name}: row lengths {_short(lengths)} do not add up to {len(flat)} values")
    rows, start = [], 0
    for n in lengths:
        rows.append(tuple(flat[start : start + n]))
        start += n
    return tuple(rows)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def shard_name(dataset: str, split: str, index: int, shards: int, file_format: str = "tfrecord") -> str:
    """A shard's path below the records' folder, named as tfds does."""
    return f"{dataset}/{dataset}-{split}.{file_format}-{index:05d}-of-{shards:05d}"


def features_json(table: FeatureTable) -> str:
    """The text of features.json for a feature table."""
    features = {name: _feature(feature) for name, feature in table.items()}
    described = {"pythonClassName": f"{_CLASSES}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    return _pretty(described)


def _feature(feature: Feature) -> dict[str, Any]:
    if feature.kind == "bytes":
        described = {"pythonClassName": f"{_CLASSES}.text_feature.Text", "text": {}}
    else:
        shape = {} if feature.width is None else {"dimensions": [str(feature.width)]}
        tensor = {"dtype": _DTYPES[feature.kind], "encoding": "none", "shape": shape}
        described = {"pythonClassName": f"{_CLASSES}.tensor_feature.Tensor", "tensor": tensor}
    for _ in range(feature.rank):
        described = {
            "pythonClassName": f"{_CLASSES}.sequence_feature.Sequence",
            "sequence": {"feature": described, "length": "-1"},
        }
    return described


def dataset_info_json(
    dataset: str, splits: Mapping[str, Sequence[Mapping[str, Any]]], file_format: str = "tfrecord"
) -> str:
    """The text of dataset_info.json; `splits` maps names to their shards' manifest entries (`records`, `bytes`)."""
    described = [
        {
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": split,
            "numBytes": str(sum(shard["bytes"] for shard in shards)),
            "shardLengths": [str(shard["records"]) for shard in shards],
        }
        for split, shards in splits.items()
        if shards  # tfds has no notion of a split without files
    ]
    description = {
        "sft": "Responses for supervised fine-tuning (cogpo_jax.records.schema.SftExample).",
        "groups": "Problems with their responses and preference pairs (cogpo_jax.records.schema.Group).",
    }[dataset]
    info = {
        "description": description,
        "fileFormat": file_format,
        "name": dataset,
        "releaseNotes": {VERSION: "First version."},
        "splits": described,
        "version": VERSION,
    }
    return _pretty(info)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
