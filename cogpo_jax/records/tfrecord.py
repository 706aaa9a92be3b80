"""TFRecord framing: length, masked CRC32C of the length, data, masked CRC32C of the data; both checked on read.

The format is the one of TensorFlow's `tensorflow/core/lib/io/record_writer.h`, uncompressed.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c
from etils import epath

from cogpo_jax.errors import UserError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


def masked_crc32c(data: bytes) -> int:
    """CRC32C, rotated and offset as TFRecord stores it (a CRC of data that holds CRCs would be weak)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """The bytes that stand for one record in a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, _FOOTER.pack(masked_crc32c(length)), data, _FOOTER.pack(masked_crc32c(data))))


def read_records(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yields the records of a TFRecord file (local or `gs://`), one in memory at a time.

    Raises UserError naming the file, the record's number (from 0) and its byte offset where the file ends inside a
    record or a checksum of the length or of the data does not hold.
    """
    with epath.Path(path).open("rb") as f:
        offset = number = 0
        while (data := _read_record(f, f"{os.fspath(path)}: record {number} at byte {offset}")) is not None:
            yield data
            offset += _HEADER.size + len(data) + _FOOTER.size
            number += 1


def _read_record(f: BinaryIO, where: str) -> bytes | None:
    header = f.read(_HEADER.size)
    if not header:
        return None
    if len(header) < _HEADER.size:
        raise UserError(f"{where}: truncated: the file ends inside the record's length")
    length, length_crc = _HEADER.unpack(header)
    # Checked before the read: a damaged length must not become an allocation of that size.
    if masked_crc32c(header[:8]) != length_crc:
        raise UserError(f"{where}: damaged: the checksum of the record's length does not match")
    data = f.read(length)
    footer = f.read(_FOOTER.size)
    if len(data) < length or len(footer) < _FOOTER.size:
        raise UserError(f"{where}: truncated: the file ends inside the record's {length} bytes")
    if masked_crc32c(data) != _FOOTER.unpack(footer)[0]:
        raise UserError(f"{where}: damaged: the checksum of the record's data does not match")
    return data
