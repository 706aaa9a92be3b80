"""The files by which tensorflow_datasets opens a folder of shards: features.json and dataset_info.json.

`tfds.builder_from_directory(folder).as_dataset(split)` then reads it (with TensorFlow, whose TFRecord reader it uses).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cogpo_jax.records.example import Feature, FeatureTable

FEATURES_FILE = "features.json"
INFO_FILE = "dataset_info.json"
FILES = (FEATURES_FILE, INFO_FILE)
VERSION = "1.0.0"

_CLASSES = "tensorflow_datasets.core.features"
_DTYPES = {"int64": "int64", "float": "float32"}


def shard_name(dataset: str, split: str, index: int, shards: int, file_format: str = "tfrecord") -> str:
    """A shard's path below the records' folder, named as tfds does."""
    return f"{dataset}/{dataset}-{split}.{file_format}-{index:05d}-of-{shards:05d}"


def features_json(table: FeatureTable) -> str:
    """The text of features.json for a feature table."""
    features = {name: _feature(feature) for name, feature in table.items()}
    described = {"pythonClassName": f"{_CLASSES}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    return _dump(described)


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
    return _dump(info)


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
