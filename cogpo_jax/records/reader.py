"""Rows of anyone's data, whatever file they came in: told by content, not by name, and streamed.

JSON lines, a JSON array or `{"data": [...]}`, CSV, Parquet, Arrow; JSON and CSV also gzipped, zstd, bz2 or xz; a folder
written by `datasets.save_to_disk`, a cloned hub repository, any folder or glob of such files;
`hf:NAME[@CONFIG][:SPLIT]`. No code of a data set is ever run.
"""

import codecs
import csv
import importlib
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, cast

from cogpo_jax.errors import UserError
from cogpo_jax.records.sources import find_files, fingerprint, pick, remote_parts

__all__ = ["find_files", "fingerprint", "read_rows"]

Row = dict[str, Any]
Bad = Callable[[str, str], None]  # place and reason of a row that is none
Progress = Callable[[float], None]  # share of the input that is read, 0..1

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"(\xb5/\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ": "lzma"}
_WRAPPERS = ("data", "rows", "examples", "instances", "items", "train")
_WRAPPED = re.compile(r'"(?:' + "|".join(_WRAPPERS) + r')"\s*:\s*\[\s*(?=[\[{])')
_BATCH = 256  # rows of a columnar file made into Python objects at a time
_CHUNK = 1 << 16


def read_rows(
    source: str | os.PathLike[str], split: str = "", *, bad: Bad | None = None, progress: Progress | None = None
) -> Iterator[tuple[str, Row]]:
    """Streams (place, row): place is FILE:LINE or FILE[NUMBER], a row is columns by name as JSON-like values.

    A JSON number with a point is a Decimal, so that its digits stay; a CSV cell is a text. `split` and `@CONFIG` pick
    from what has several; without them: `train` and `default`, or the only one. `bad` is told of each row that cannot
    be read, and reading goes on; without it, and for whatever spoils a whole file, UserError names the place.
    """
    remote = remote_parts(os.fspath(source))
    rows: Iterator[tuple[str, Row]]
    if remote:
        rows = _remote_rows(*remote[:2], split or remote[2])
    else:
        rows = _local_rows(find_files(source, split), bad, progress or (lambda share: None))
    first = next(rows, None)
    if first is None:
        raise UserError(f"input: {source}: empty: no rows in it")
    return itertools.chain([first], rows)


def _local_rows(files: list[Path], bad: Bad | None, progress: Progress) -> Iterator[tuple[str, Row]]:
    for number, path in enumerate(files):

        def share(done: float, number: int = number) -> None:
            progress((number + done) / len(files))

        try:
            yield from _file_rows(path, bad, share)
        except UserError:
            raise
        except (OSError, EOFError, ValueError) as error:  # pyarrow's and gzip's own errors among them
            raise UserError(f"input: {path}: damaged or cut off ({' '.join(str(error).split())[:200]})") from error


def _file_rows(path: Path, bad: Bad | None, share: Progress) -> Iterator[tuple[str, Row]]:
    with open(path, "rb") as raw:
        magic = raw.read(8)
        raw.seek(0)
        if magic.startswith(b"PAR1"):
            yield from _parquet_rows(path, share)
        elif magic.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from _arrow_rows(path, magic.startswith(b"ARROW1"), share)
        elif magic.startswith(b"version "):
            raise UserError(f"input: {path}: a Git LFS pointer, not the data; run `git lfs pull` in its folder")
        else:
            size = max(path.stat().st_size, 1)
            for place, row in _text_rows(path, _decompressed(raw, magic), bad):
                share(raw.tell() / size)
                yield place, row


def _decompressed(raw: BinaryIO, magic: bytes) -> BinaryIO:
    kind = next((kind for start, kind in _COMPRESSIONS.items() if magic.startswith(start)), "")
    if not kind:
        return raw
    if kind == "zstd":
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd")))
    module: Any = importlib.import_module(kind)
    return cast(BinaryIO, io.BufferedReader(module.open(raw)))


def _text_rows(path: Path, data: BinaryIO, bad: Bad | None) -> Iterator[tuple[str, Row]]:
    """Rows of JSON or CSV, told apart by the first line that is not blank."""
    lines: Iterator[bytes] = iter(data.readline, b"")
    number, first = next(((i, line) for i, line in enumerate(lines, 1) if line.strip(b"\xef\xbb\xbf \t\r\n")), (0, b""))
    if not number:
        raise UserError(f"input: {path}: empty: no rows in it")
    first = first.removeprefix(b"\xef\xbb\xbf")
    start = first.lstrip()
    if start[:1] == b"[" or (start[:1] == b"{" and _is_wrapped(start, lines_ahead := list(itertools.islice(lines, 8)))):
        ahead = [first, *(lines_ahead if start[:1] == b"{" else [])]
        yield from _array_rows(path, _Text(ahead, data), start[:1] == b"{", bad)
    elif start[:1] == b"{":
        yield from _lines_rows(path, itertools.chain([first], lines_ahead, lines), number, bad)
    elif _is_header(path, first):
        lines = itertools.chain([first], lines)
        yield from _csv_rows(path, (line.decode("utf-8", "replace") for line in lines), b"\t" in first, number)
    else:
        _refuse(bad, f"{path}:{number}", "not JSON: each line must be one JSON object (or give an array, or CSV)")
        yield from _lines_rows(path, lines, number + 1, bad)


def _is_wrapped(first: bytes, ahead: list[bytes]) -> bool:
    """Whether a text that begins with a brace is one object around the rows, not a row a line."""
    head = b"".join([first, *ahead])[: 1 << 20].decode("utf-8", "replace")
    found = _WRAPPED.search(head)
    if found is None or head[: found.start()].count("{") != 1:
        return False
    return not any(line.lstrip().startswith(b"{") and line.rstrip(b" \r\n,").endswith(b"}") for line in ahead[:1])


def _is_header(path: Path, line: bytes) -> bool:
    cells = re.split(r"[,\t]", line.decode("utf-8", "replace").strip())
    plain = all(re.fullmatch(r'"?[\w .-]{1,60}"?', cell) for cell in cells)
    return (plain and len(cells) > 1) or path.suffix in (".csv", ".tsv")


def _lines_rows(path: Path, lines: Iterator[bytes], start: int, bad: Bad | None) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(lines, start):
        if line.strip():
            place = f"{path}:{number}"
            try:
                value = json.loads(line, parse_float=Decimal)
            except (ValueError, RecursionError) as error:
                _refuse(bad, place, f"not JSON ({_told(error)}): each line must be one JSON object")
                continue
            yield from _as_row(place, value, bad)


def _as_row(place: str, value: Any, bad: Bad | None) -> Iterator[tuple[str, Row]]:
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        value = {"conversations": value}  # Open-Reasoner-Zero: a row is a bare list of turns
    if isinstance(value, dict):
        inner = value.get("row")  # the form of the hub's own /rows service
        yield place, inner if isinstance(inner, dict) and "row_idx" in value else value
    else:
        _refuse(bad, place, f"{type(value).__name__}: each row must be one JSON object")


class _Text:
    """A growing text: what has been read and not yet been used."""

    def __init__(self, ahead: list[bytes], data: BinaryIO):
        self._data = data
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.text, self.at, self.ended = self._decode(b"".join(ahead)), 0, False

    def more(self, size: int = _CHUNK) -> None:
        chunk = self._data.read(size)
        self.ended = len(chunk) < size and not (chunk and self._data.peek(1) if hasattr(self._data, "peek") else chunk)
        self.text, self.at = self.text[self.at :] + self._decode(chunk, self.ended), 0

    def skip(self, characters: str) -> str:
        """Passes over these characters; the next one, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in characters:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()


def _array_rows(path: Path, text: _Text, wrapped: bool, bad: Bad | None) -> Iterator[tuple[str, Row]]:
    decoder = json.JSONDecoder(parse_float=Decimal)
    if wrapped:
        while (found := _WRAPPED.search(text.text)) is None and not text.ended:
            text.more()
        text.at = found.end() if found else 0
    else:
        text.skip(" \t\r\n")
        text.at += 1
    for number in itertools.count():
        if (following := text.skip(" \t\r\n,")) == "]":
            return
        place, size = f"{path}[{number}]", _CHUNK
        if not following:
            raise UserError(f"input: {place}: the JSON array is cut off")
        while True:
            try:
                value, end = decoder.raw_decode(text.text, text.at)
                if end < len(text.text) or text.ended:
                    break
            except (ValueError, RecursionError) as error:
                if text.ended or isinstance(error, RecursionError):
                    raise UserError(f"input: {place}: not JSON ({_told(error)})") from error
            text.more(size)
            size *= 2
        text.at = end
        yield from _as_row(place, value, bad)


def _csv_rows(path: Path, lines: Iterator[str], tabs: bool, number: int) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(1 << 28)  # a chain of thought is longer than csv's own limit
    reader = csv.DictReader(lines, delimiter="\t" if tabs else ",", restkey="(more cells than columns)")
    for row in reader:
        yield f"{path}:{number - 1 + reader.line_num}", {name: _cell(cell) for name, cell in row.items()}


def _cell(cell: Any) -> Any:
    """A cell of CSV: empty is none, a JSON object or list of objects is that."""
    if isinstance(cell, str) and re.match(r'\[\s*\{\s*"|\{\s*"', cell):
        try:
            return json.loads(cell, parse_float=Decimal)
        except (ValueError, RecursionError):
            return cell
    return cell if cell != "" else None


def _parquet_rows(path: Path, share: Progress) -> Iterator[tuple[str, Row]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        total, number = file.metadata.num_rows, 0
        for batch in file.iter_batches(_BATCH, use_threads=False):
            for row in batch.to_pylist():
                yield f"{path}[{number}]", row
                number += 1
            share(number / total)


def _arrow_rows(path: Path, is_file: bool, share: Progress) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        opened = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        batches = (opened.get_batch(i) for i in range(opened.num_record_batches)) if is_file else opened
        number = 0
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                for row in batch.slice(start, _BATCH).to_pylist():
                    yield f"{path}[{number}]", row
                    number += 1
            share(source.tell() / max(source.size(), 1))


def _remote_rows(name: str, config: str, split: str) -> Iterator[tuple[str, Row]]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"input: hf:{name}: no such folder; from the hub it needs `pip install datasets`") from error
    try:
        splits = datasets.get_dataset_split_names(name, config or None)
        split = pick(Path(name), "split", split, splits, "train")
        rows = datasets.load_dataset(name, config or None, split=split, streaming=True)
        for number, row in enumerate(rows):
            yield f"hf:{name}[{number}]", row
    except UserError:
        raise
    except Exception as error:  # datasets raises whatever its back ends raise; of a wrong config it lists the others
        raise UserError(f"input: hf:{name}: {' '.join(str(error).split())[:300]}") from error


def _told(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _refuse(bad: Bad | None, place: str, reason: str) -> None:
    if bad is None:
        raise UserError(f"{place}: {reason}")
    bad(place, "not_json" if reason.startswith("not JSON") else "not_an_object")
