"""Framing: the published vectors, and damage anywhere in a file is named."""

import re

import google_crc32c
import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.records import tfrecord

# RFC 3720, appendix B.4.
CRC32C_VECTORS = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
]

# What TensorFlow 2.21's tf.io.TFRecordWriter writes for b"" and b"hello".
TENSORFLOW_FILE = bytes.fromhex("000000000000000029039807d8ea82a20500000000000000eab2043e68656c6c6fbb1f1c19")

RECORDS = [b"first", b"", b"\x00" * 20, b"last one"]


def write(path, records=RECORDS):
    path.write_bytes(b"".join(map(tfrecord.frame, records)))
    return path


@pytest.mark.parametrize(("data", "crc"), CRC32C_VECTORS)
def test_masked_crc_is_the_rotated_and_offset_crc32c(data, crc):
    assert google_crc32c.value(data) == crc
    assert tfrecord.masked_crc32c(data) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def test_file_is_byte_for_byte_tensorflows(tmp_path):
    path = write(tmp_path / "f", [b"", b"hello"])
    assert path.read_bytes() == TENSORFLOW_FILE
    assert list(tfrecord.read_records(path)) == [b"", b"hello"]


def test_records_come_back(tmp_path):
    assert list(tfrecord.read_records(write(tmp_path / "f"))) == RECORDS
    assert list(tfrecord.read_records(write(tmp_path / "empty", []))) == []


def _starts():
    starts, offset = [], 0
    for record in RECORDS:
        starts.append(offset)
        offset += len(tfrecord.frame(record))
    return starts, offset


def _record_at(offset):
    starts, _ = _starts()
    return max(i for i, start in enumerate(starts) if start <= offset)


def test_every_flipped_bit_is_named_with_its_record_and_offset(tmp_path):
    data = write(tmp_path / "f").read_bytes()
    path = tmp_path / "damaged"
    starts, size = _starts()
    assert size == len(data)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        number = _record_at(bit // 8)
        with pytest.raises(UserError, match=re.escape(f"{path}: record {number} at byte {starts[number]}: damaged")):
            list(tfrecord.read_records(path))


def test_every_truncation_inside_a_record_is_named(tmp_path):
    data = write(tmp_path / "f").read_bytes()
    path = tmp_path / "torn"
    starts, size = _starts()
    for end in set(range(size)) - set(starts):
        path.write_bytes(data[:end])
        number = _record_at(end)
        with pytest.raises(UserError, match=re.escape(f"{path}: record {number} at byte {starts[number]}: truncated")):
            list(tfrecord.read_records(path))


def test_records_before_the_damage_are_read(tmp_path):
    data = bytearray(write(tmp_path / "f").read_bytes())
    data[-1] ^= 1
    (tmp_path / "f").write_bytes(data)
    reader = tfrecord.read_records(tmp_path / "f")
    assert [next(reader) for _ in RECORDS[:-1]] == RECORDS[:-1]
    with pytest.raises(UserError):
        next(reader)
