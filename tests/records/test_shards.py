"""Folders of records: what is written is read, byte for byte alike, whole or not at all, and only if untouched."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogpo_jax.errors import UserError
from cogpo_jax.records import read_groups, read_sft, splits, tfrecord, verify_manifest, write_data

FIRST_SHARD = "groups/groups-train.tfrecord-00000-of-00002"


@pytest.fixture
def folder(tmp_path, group, sft):
    write_data(
        tmp_path / "data",
        sft={"train": map(sft, range(5))},
        groups={"train": map(group, range(7)), "validation": [group(9)]},
        shards=2,
        info={"dropped": {"too_long": 3}},
    )
    return tmp_path / "data"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_records_come_back_in_order(folder, group, sft):
    assert list(read_groups(folder)) == [group(i) for i in range(7)]
    assert list(read_groups(folder, "validation")) == [group(9)]
    assert list(read_sft(folder, "train")) == [sft(i) for i in range(5)]
    assert splits(folder) == {"groups": {"train": 7, "validation": 1}, "sft": {"train": 5}}


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 9), shards=st.integers(1, 5))
def test_order_survives_any_number_of_shards(tmp_path_factory, group, count, shards):
    folder = tmp_path_factory.mktemp("data")
    manifest = write_data(folder, groups={"train": (group(i) for i in range(count))}, shards=shards)
    assert [g.problem_id for g in read_groups(folder)] == [f"p{i}" for i in range(count)]
    sizes = [entry["records"] for _, entry in sorted(manifest["shards"].items())]
    assert len(sizes) == min(count, shards)  # no empty files
    assert all(a - b in (0, 1) for a, b in pairwise(sizes))
    names = [f"groups/groups-train.tfrecord-{i:05d}-of-{len(sizes):05d}" for i in range(len(sizes))]
    assert sorted(manifest["shards"]) == names


def test_same_records_same_bytes(folder, tmp_path, group, sft):
    write_data(
        tmp_path / "again",
        groups={"train": [group(i) for i in range(7)], "validation": [group(9)]},
        sft={"train": [sft(i) for i in range(5)]},
        shards=2,
        info={"dropped": {"too_long": 3}},
    )
    assert contents(tmp_path / "again") == contents(folder)


def test_manifest_tells_counts_and_drops(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["info"] == {"dropped": {"too_long": 3}}
    assert manifest["datasets"]["groups"]["train"]["records"] == 7
    counts = manifest["datasets"]["groups"]["train"]["counts"]
    assert counts["gap/small"] == counts["gap/medium"] == counts["gap/large"] == counts["kind/hard"] == 7
    assert (counts["pairs"], counts["responses"]) == (21, 21)
    for path, entry in manifest["shards"].items():
        assert entry["bytes"] == (folder / path).stat().st_size
        assert entry["records"] == len(list(tfrecord.read_records(folder / path)))


def test_info_may_be_counted_while_records_are_written(tmp_path, group):
    info = {"dropped": 0}

    def records():
        yield group(0)
        info["dropped"] += 1

    write_data(tmp_path, groups={"train": records()}, info=info)
    assert json.loads((tmp_path / "manifest.json").read_text())["info"] == {"dropped": 1}


def test_dataset_info_is_tfds_readable_metadata(folder):
    info = json.loads((folder / "groups/dataset_info.json").read_text())
    assert (info["name"], info["fileFormat"]) == ("groups", "tfrecord")
    train = next(s for s in info["splits"] if s["name"] == "train")
    assert train["shardLengths"] == ["4", "3"]
    sizes = [p.stat().st_size for p in folder.glob("groups/groups-train.tfrecord-*")]
    assert train["numBytes"] == str(sum(sizes))
    features = json.loads((folder / "groups/features.json").read_text())["featuresDict"]["features"]
    assert features["loss_spans"]["sequence"]["feature"]["sequence"]["feature"]["tensor"]["dtype"] == "int64"


def test_bad_record_is_named_and_nothing_changes(folder, group):
    before = contents(folder)
    bad = replace(group(3), prompt="")
    with pytest.raises(UserError, match=r"groups train record 1 \(problem_id 'p3'\): prompt: empty"):
        write_data(folder, groups={"train": [group(1), bad]})
    assert contents(folder) == before


def test_failure_of_the_source_leaves_nothing(tmp_path, group):
    def records():
        yield group(0)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_data(tmp_path / "data", groups={"train": records()})
    assert contents(tmp_path / "data") == {}
    assert list((tmp_path / "data").iterdir()) == []


def test_kill_while_writing_leaves_the_old_records(folder):
    before = contents(folder)
    script = f"""
import os, signal
from cogpo_jax.records import read_groups, write_data
def records():
    yield from read_groups({str(folder)!r}, verify=False)
    os.kill(os.getpid(), signal.SIGKILL)
write_data({str(folder)!r}, groups={{"train": records()}})
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert {p: d for p, d in contents(folder).items() if not p.startswith(".staging")} == before
    assert len(list(read_groups(folder))) == 7
    write_data(folder, groups={"train": list(read_groups(folder))})
    assert not (folder / ".staging").exists()


def test_failure_while_publishing_leaves_no_valid_mixture(folder, group, monkeypatch):
    moved = []

    def fail_on_the_second(source, target):
        moved.append(target)
        if len(moved) == 2:
            raise OSError("disk full")
        os.replace(source, target)

    monkeypatch.setattr("cogpo_jax.records.shards.replace_file", fail_on_the_second)
    with pytest.raises(OSError, match="disk full"):
        write_data(folder, groups={"train": [group(0)]})
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):
        list(read_groups(folder))


def test_rewriting_removes_the_old_shards(folder, group):
    write_data(folder, groups={"train": [group(1)]})
    assert list(read_groups(folder)) == [group(1)]
    assert sorted(contents(folder)) == [
        "groups/dataset_info.json",
        "groups/features.json",
        "groups/groups-train.tfrecord-00000-of-00001",
        "manifest.json",
    ]


def test_reader_streams(tmp_path, group):
    write_data(tmp_path, groups={"train": map(group, range(4))})
    shard = tmp_path / "groups/groups-train.tfrecord-00000-of-00001"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    reader = read_groups(tmp_path, verify=False)
    assert [next(reader) for _ in range(3)] == [group(i) for i in range(3)]
    with pytest.raises(UserError, match=re.escape(f"{shard}: record 3 at byte")):
        next(reader)


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "bit":
        data[len(data) // 2] ^= 4
    elif how == "tail":
        del data[-5:]
    elif how == "record":
        del data[len(tfrecord.frame(next(tfrecord.read_records(path)))) :]
    elif how == "swap":  # valid records, in another order
        data = b"".join(map(tfrecord.frame, reversed(list(tfrecord.read_records(path)))))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bit", r"record \d at byte \d+: damaged"),
        ("tail", r"record 3 at byte \d+: truncated"),
        ("record", "changed since it was written"),
        ("swap", r"changed since it was written \(another sha256\)"),
    ],
)
def test_changed_shard_is_refused(folder, how, message):
    damage(folder / FIRST_SHARD, how)
    with pytest.raises(UserError, match=re.escape(f"{folder / FIRST_SHARD}: ") + message):
        verify_manifest(folder)
    with pytest.raises(UserError, match=message):
        read_groups(folder)  # refused at the call, before the first record


def test_missing_and_extra_shards_are_refused(folder):
    other = folder / "groups/groups-train.tfrecord-00002-of-00003"
    other.write_bytes((folder / FIRST_SHARD).read_bytes())
    with pytest.raises(UserError, match=re.escape(f"{other}: not listed in manifest.json")):
        verify_manifest(folder)
    other.unlink()
    (folder / FIRST_SHARD).unlink()
    with pytest.raises(UserError, match=re.escape(f"{folder / FIRST_SHARD}: missing")):
        verify_manifest(folder)


def test_changed_metadata_is_refused(folder):
    path = folder / "groups/features.json"
    path.write_text(path.read_text().replace("int64", "int32"))
    with pytest.raises(UserError, match=re.escape(str(path))):
        verify_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1, "shards": []}', "null"])
def test_damaged_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        verify_manifest(folder)


def test_manifest_of_another_version_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(UserError, match="schema_version: 2: this version reads 1"):
        verify_manifest(folder)


def test_no_folder_and_no_split_are_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*no such file"):
        read_groups(tmp_path / "nowhere")
    with pytest.raises(UserError, match="sft split 'validation': no such records; it has train"):
        read_sft(folder, "validation")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        read_groups(tmp_path / "file")
    with pytest.raises(UserError, match="file: cannot be written"):
        write_data(tmp_path / "file", groups={"train": []})


def test_bad_arguments_are_refused(tmp_path, group):
    with pytest.raises(UserError, match="shards: 0"):
        write_data(tmp_path, groups={"train": [group()]}, shards=0)
    with pytest.raises(UserError, match="groups split: 'test': must be train or validation"):
        write_data(tmp_path, groups={"test": [group()]})


def test_invalid_group_in_a_shard_is_named_on_read(tmp_path, group, monkeypatch):
    bad = replace(group(1), pairs=(replace(group(1).pairs[0], rejected=2),))
    with monkeypatch.context() as patch:
        patch.setattr("cogpo_jax.records.schema._check_pair", lambda *_: None)
        write_data(tmp_path, groups={"train": [group(0), bad]})
    with pytest.raises(
        UserError, match=r"groups-train.*: record 1: pairs\[0\].gap: small: its rejected response is inc"
    ):
        list(read_groups(tmp_path))


REMOTE = """
import fsspec
from fsspec.implementations.memory import MemoryFileSystem

class Bucket(MemoryFileSystem):
    protocol = ("gs", "gcs")

for name in Bucket.protocol:
    fsspec.register_implementation(name, Bucket, clobber=True)

from cogpo_jax.records import Group, Pair, Response, read_groups, write_data
responses = tuple(Response(n, "", "teacher", "", "", "", n, "unknown", "") for n in "ab")
groups = [Group(f"p{i}", "", "?", "", responses, (Pair(0, 1, "none"),)) for i in range(3)]
write_data("gs://bucket/data", groups={"train": groups}, shards=2)
assert list(read_groups("gs://bucket/data")) == groups
write_data("gs://bucket/data", groups={"train": groups[2:]})
assert list(read_groups("gs://bucket/data")) == groups[2:]
names = sorted(path for path in Bucket.store if "data" in path)
print(*names, sep="\\n")
"""


def test_remote_folder_is_written_and_read():
    pytest.importorskip("fsspec")
    done = subprocess.run([sys.executable, "-c", REMOTE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.rsplit("data/", 1)[1] for line in done.stdout.split()] == [
        "groups/dataset_info.json",
        "groups/features.json",
        "groups/groups-train.tfrecord-00000-of-00001",
        "manifest.json",
    ]
