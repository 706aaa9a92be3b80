"""Real TensorFlow and tensorflow_datasets read what cogpo_jax.records writes: every field, every record.

Run by `make test-tf` in an environment of its own. That both share this process also shows that our tf.train.Example
messages and TensorFlow's do not clash.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from cogpo_jax.records import Group, Pair, Response, SftExample, read_groups, write_data
from cogpo_jax.records.schema import GROUP_FEATURES, SFT_FEATURES, encode_group, encode_sft
from cogpo_jax.records.shards import write_array_record

SFT = [
    SftExample(
        problem_id=f"p{i}",
        system="Be brief." if i else "",
        prompt="What is ∑ 1/n²?\nShow it.",
        thought="Basel: \\frac{\\pi^2}{6}" if i % 2 else "",
        solution="π²/6" if i % 2 else "",
        text="" if i % 2 else "It is π²/6 🙂",
        answer="\\pi^2/6",
        difficulty="Level 5",
        source="fixture",
        messages='[{"role": "user", "content": "x"}]' if i else "",
        verifier='{"tests": []}' if i else "",
        id=f"r{i}",
        origin="teacher",
        loss_spans=((0, 2), (5, 9)) if i == 0 else (),
    )
    for i in range(5)
]


def _response(name: str, kind: str, spans: tuple[tuple[int, int], ...] = ()) -> Response:
    return Response(name, "", "rewrite", "qwen", "", "", f"text of {name} é", kind, '{"method": "exact"}', spans)


def _group(i: int) -> Group:
    responses = (
        _response("good", "suitable", ((0, 1), (2, 3), (4, 6))),
        _response("terse", "easy"),
        _response("wrong", "incorrect", ((1, 2),)),
    )
    pairs = (Pair(0, 1, "small", 0.1), Pair(1, 2, "medium"), Pair(0, 2, "large", 0.5, 2.0))
    # Sizes differ from group to group, and some groups have no loss span anywhere.
    return (
        Group(f"p{i}", "", "Why?", "42", responses, pairs, source="fixture")
        if i % 2
        else Group(
            f"p{i}", "s", "Why not?", "", responses[1:2] + responses[:0] + (responses[0],), (Pair(1, 0, "small"),)
        )
    )


GROUPS = [_group(i) for i in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records")
    write_data(
        path,
        sft={"train": SFT, "validation": SFT[:1]},
        groups={"train": GROUPS, "validation": GROUPS[:2]},
        shards=3,
    )
    return path


def _plain(value: Any) -> Any:
    """A field as tfds gives it, as Python values with text decoded."""
    if isinstance(value, tf.RaggedTensor):
        return value.to_list()
    value = value.numpy() if isinstance(value, tf.Tensor) else value
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def _columns(record: Group | SftExample) -> dict[str, Any]:
    """What the record's fields must look like on TensorFlow's side."""
    columns = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    for name, kind in (("responses", Response), ("pairs", Pair)):
        if name in columns:
            items = columns.pop(name)
            columns |= {f.name: [getattr(item, f.name) for item in items] for f in dataclasses.fields(kind)}
    return json.loads(json.dumps(columns))  # tuples to lists


def _assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if name in ("beta", "weight"):
            assert found[name] == pytest.approx(value, rel=1e-7, nan_ok=True), name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize(
    ("dataset", "split", "records"),
    [
        ("sft", "train", SFT),
        ("sft", "validation", SFT[:1]),
        ("groups", "train", GROUPS),
        ("groups", "validation", GROUPS[:2]),
    ],
)
def test_tfds_reads_every_field_of_every_record(folder, dataset, split, records):
    builder = tfds.builder_from_directory(folder / dataset)
    assert builder.info.splits[split].num_examples == len(records)
    assert set(builder.info.features) == set(GROUP_FEATURES if dataset == "groups" else SFT_FEATURES)
    found = [{name: _plain(v) for name, v in row.items()} for row in builder.as_dataset(split=split)]
    assert len(found) == len(records)
    for row, record in zip(sorted(found, key=_key), sorted(map(_columns, records), key=_key), strict=True):
        _assert_equal(row, record)


def _key(columns: dict[str, Any]) -> str:
    return columns["problem_id"]


@pytest.mark.parametrize(("dataset", "records"), [("sft", SFT), ("groups", GROUPS)])
def test_tfds_reads_array_records_by_index(folder, tmp_path, dataset, records):
    write_array_record(folder, tmp_path / "out")
    source = tfds.builder_from_directory(tmp_path / "out" / dataset).as_data_source("train")
    assert len(source) == len(records)
    found = [{name: _plain(v) for name, v in source[i].items()} for i in range(len(source))]
    for row, record in zip(sorted(found, key=_key), sorted(map(_columns, records), key=_key), strict=True):
        _assert_equal(row, record)


def test_nan_beta_and_loss_spans_arrive_as_such(folder):
    rows = {
        _plain(r["problem_id"]): r for r in tfds.builder_from_directory(folder / "groups").as_dataset(split="train")
    }
    assert math.isnan(_plain(rows["p1"]["beta"])[1])
    assert _plain(rows["p1"]["loss_spans"]) == [[[0, 1], [2, 3], [4, 6]], [], [[1, 2]]]


def test_features_json_is_what_tfds_writes_itself(folder, tmp_path):
    text, number = tfds.features.Text, {"int64": np.int64, "float": np.float32}
    for dataset, table in (("sft", SFT_FEATURES), ("groups", GROUP_FEATURES)):
        features = {}
        for name, row in table.items():
            shape = () if row.width is None else (row.width,)
            feature: Any = text() if row.kind == "bytes" else tfds.features.Tensor(shape=shape, dtype=number[row.kind])
            for _ in range(row.rank):
                feature = tfds.features.Sequence(feature)
            features[name] = feature
        (tmp_path / dataset).mkdir()
        tfds.features.FeaturesDict(features).save_config(tmp_path / dataset)
        written = json.loads((tmp_path / dataset / "features.json").read_text())
        assert json.loads((folder / dataset / "features.json").read_text()) == written


def test_tensorflows_own_writer_gives_the_same_file(folder, tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "tf")) as writer:
        for record in SFT[0::3]:
            writer.write(encode_sft(record))
    ours = folder / "sft" / "sft-train.tfrecord-00000-of-00003"
    assert (tmp_path / "tf").read_bytes() == ours.read_bytes()


def test_an_example_that_tensorflow_wrote_is_read(folder, tmp_path):
    data = [tf.train.Example.FromString(encode_group(group)).SerializeToString() for group in GROUPS]
    write_data(tmp_path, groups={"train": GROUPS})
    shard = tmp_path / "groups" / "groups-train.tfrecord-00000-of-00001"
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for example in data:
            writer.write(example)
    assert list(read_groups(tmp_path, verify=False)) == GROUPS


def test_tensorflow_parses_the_records_by_a_plain_specification(folder):
    shards = sorted(str(path) for path in (folder / "groups").glob("groups-train.tfrecord-*"))
    spec = {
        "problem_id": tf.io.FixedLenFeature([], tf.string),
        "text": tf.io.VarLenFeature(tf.string),
        "chosen": tf.io.VarLenFeature(tf.int64),
        "beta": tf.io.VarLenFeature(tf.float32),
    }
    rows = [tf.io.parse_single_example(data, spec) for data in tf.data.TFRecordDataset(shards)]
    by_id = {row["problem_id"].numpy().decode(): row for row in rows}
    assert len(by_id) == len(GROUPS)
    for group in GROUPS:
        row = by_id[group.problem_id]
        assert [t.decode() for t in row["text"].values.numpy()] == [r.text for r in group.responses]
        assert row["chosen"].values.numpy().tolist() == [p.chosen for p in group.pairs]
