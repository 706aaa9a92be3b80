"""ArrayRecord files hold the very bytes of the TFRecords (that tfds opens them by index: tests_tf)."""

import builtins
import hashlib

import pytest
from array_record.python import array_record_module

from cogpo_jax.errors import UserError
from cogpo_jax.records import read_groups, read_sft, write_data
from cogpo_jax.records.schema import decode_group, decode_sft
from cogpo_jax.records.shards import write_array_record


@pytest.fixture
def folder(tmp_path, group, sft):
    groups = {"train": [group(i) for i in range(7)], "validation": [group(9)]}
    write_data(tmp_path / "data", {"train": [sft(i) for i in range(5)]}, groups, shards=3)
    return tmp_path / "data"


def read(folder, name, split):
    """All records of a split, dealt to shards in turn as they were written."""
    shards = [
        list(array_record_module.ArrayRecordReader(str(path)).read_all())
        for path in sorted((folder / name).glob(f"{name}-{split}.array_record-*"))
    ]
    return [shard[i] for i in range(len(shards[0])) for shard in shards if i < len(shard)]


def test_every_record_comes_back(folder, tmp_path):
    out = write_array_record(folder, tmp_path / "out")
    assert [decode_sft(data) for data in read(out, "sft", "train")] == list(read_sft(folder))
    assert [decode_group(data) for data in read(out, "groups", "train")] == list(read_groups(folder))
    assert [decode_group(data) for data in read(out, "groups", "validation")] == list(read_groups(folder, "validation"))


def test_equal_records_give_equal_files_and_old_ones_go(folder, tmp_path):
    def digests():
        files = sorted(f for f in (tmp_path / "out").rglob("*") if f.is_file())
        return {f.relative_to(tmp_path): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    write_array_record(folder, tmp_path / "out")
    first = digests()
    assert len(first) == 3 + 3 + 1 + 4
    (tmp_path / "out" / "sft" / "sft-train.array_record-00000-of-00009").write_bytes(b"left over")
    write_array_record(folder, tmp_path / "out")
    assert digests() == first


def test_a_damaged_shard_is_not_copied(folder, tmp_path):
    shard = next((folder / "groups").glob("*train.tfrecord-00001*"))
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        write_array_record(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(folder, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("array_record"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install array_record"):
        write_array_record(folder, tmp_path / "out")
