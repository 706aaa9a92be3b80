"""Rows of anyone's data, whatever file they came in: told by content, not by name, and streamed.

JSON lines, a JSON array or an object that holds one, CSV, Parquet, Arrow; JSON and CSV in UTF-8, -16 or -32, also
compressed (gzip, zstd, lz4, bz2, xz); a folder written by `datasets.save_to_disk`, a cloned hub repository, any folder
or glob of such files; `hf:NAME[@CONFIG][:SPLIT]`. No code of a data set is ever run.
"""

import codecs
import csv
import importlib
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, cast

from cogpo_jax.errors import UserError
from cogpo_jax.records.sources import find_files, fingerprint, named_split, pick, remote_parts
from cogpo_jax.records.texts import replace_surrogates

__all__ = ["find_files", "fingerprint", "read_rows"]

Row = dict[str, Any]
Bad = Callable[[str, str], None]  # place and reason of a row that is none
_Refuse = Callable[[str, str, str], None]  # place, reason and message of a row that is none
Progress = Callable[[float], None]  # share of the input that is read, 0..1

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"(\xb5/\xfd": "zstd", b'\x04"M\x18': "lz4", b"BZh": "bz2", b"\xfd7zXZ": "lzma"}
# What holds the rows of a file that is one object.
_WRAPPERS = ("data", "rows", "examples", "instances", "items", "records", "results", "problems", "questions", "samples")
_BATCH = 256  # rows of a columnar file made into Python objects at a time
_CHUNK = 1 << 16
_HEAD = 1 << 20  # bytes that tell what a text is
_SPACE = " \t\r\n"
_JSON = json.JSONDecoder(parse_float=Decimal)  # 0.10 stays 0.10


def read_rows(
    source: str | os.PathLike[str], split: str = "", *, bad: Bad | None = None, progress: Progress | None = None
) -> Iterator[tuple[str, Row]]:
    """Streams (place, row): place is FILE:LINE or FILE[NUMBER], a row is columns by name as JSON-like values.

    A JSON number with a point is a Decimal, so that its digits stay; a CSV cell is a text. `split` and `@CONFIG` pick
    from what has several; without them: `train` and `default`, or the only one. `bad` is told of each row that cannot
    be read, and reading goes on; without it, and for whatever spoils a whole file, UserError names the place.
    """
    told = ""

    def refuse(place: str, reason: str, message: str) -> None:
        nonlocal told
        told = told or f"input: {place}: {message}"
        if bad is None:
            raise UserError(told)
        bad(place, reason)

    remote = remote_parts(os.fspath(source))
    rows: Iterator[tuple[str, Row]]
    if remote:
        rows = _remote_rows(*remote[:2], split or remote[2])
    else:
        files, split = find_files(source, split), split or named_split(source)
        rows = _local_rows(files, split, refuse, progress or (lambda share: None))
    first = next(rows, None)
    if first is None:
        raise UserError(told or f"input: {source}: empty: no rows in it")
    return itertools.chain([first], rows)


def _local_rows(files: list[Path], split: str, refuse: _Refuse, progress: Progress) -> Iterator[tuple[str, Row]]:
    for number, path in enumerate(files):

        def share(done: float, number: int = number) -> None:
            progress((number + done) / len(files))

        try:
            yield from _file_rows(path, split, refuse, share)
        except UserError:
            raise
        except UnicodeError as error:
            raise UserError(f"input: {path}: not UTF-8 ({error}); save it as UTF-8") from error
        except (OSError, EOFError, ValueError) as error:  # pyarrow's and gzip's own errors among them
            raise UserError(f"input: {path}: damaged or cut off ({' '.join(str(error).split())[:200]})") from error


def _file_rows(path: Path, split: str, refuse: _Refuse, share: Progress) -> Iterator[tuple[str, Row]]:
    with open(path, "rb") as raw:
        magic = raw.read(8)
        if magic.startswith(b"PAR1"):
            yield from _parquet_rows(path, share)
        elif magic.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from _arrow_rows(path, magic.startswith(b"ARROW1"), share)
        elif magic.startswith(b"version "):
            raise UserError(f"input: {path}: a Git LFS pointer, not the data; run `git lfs pull` in its folder")
        else:
            with open(path, "rb") as start:
                head = _decompressed(start, magic).read(_HEAD)
            raw.seek(0)
            size = max(path.stat().st_size, 1)
            rows = _text_rows(path, head, _decompressed(raw, magic), split, refuse)
            for number, (place, row) in enumerate(rows):
                if number % _BATCH == 0:
                    share(raw.tell() / size)
                yield place, row


def _decompressed(raw: BinaryIO, magic: bytes) -> BinaryIO:
    kind = next((kind for start, kind in _COMPRESSIONS.items() if magic.startswith(start)), "")
    if not kind:
        return raw
    if kind in ("zstd", "lz4"):
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(raw, kind)))
    module: Any = importlib.import_module(kind)
    return cast(BinaryIO, io.BufferedReader(module.open(raw)))


def _text_rows(path: Path, head: bytes, data: BinaryIO, split: str, refuse: _Refuse) -> Iterator[tuple[str, Row]]:
    """Rows of JSON or CSV in UTF-8, -16 or -32, told apart by the first two lines that are not blank."""
    encoding = json.detect_encoding(head)
    text = head.decode(encoding, "replace").lstrip()
    if "\0" in text[:4096]:
        raise UserError(
            f"input: {path}: a binary file or an archive; want JSONL, JSON, CSV, Parquet or Arrow, unpacked"
        )
    first, _, rest = text.partition("\n")
    if text[:1] in ("{", "[") and not _is_lines(first.strip(), rest.strip().partition("\n")[0].strip()):
        buffer = _Text(data, encoding)
        rows = _array_rows if text[0] == "[" else _object_rows
        yield from rows(path, buffer, split, refuse)
    elif text[:1] not in ("{", "[") and (delimiter := _delimiter(path, first[:4096].partition("\r")[0])):
        yield from _csv_rows(path, io.TextIOWrapper(data, encoding, newline=""), delimiter, refuse)
    elif encoding.startswith("utf-8"):
        yield from _lines_rows(path, data, refuse)
    else:
        lines = io.TextIOWrapper(data, encoding, newline="\n")
        yield from _lines_rows(path, (line.encode("utf-8", "surrogatepass") for line in lines), refuse)


def _is_lines(first: str, second: str) -> bool:
    """Whether each line is a row, by the first two: the first is whole, or broken and not merely the start of more."""
    if _is_json(first):
        return bool(second)
    if not second:
        return first[:1] == "{" and len(first) < _CHUNK  # one broken row, not a long line of which this is the start
    return first[-1:] not in "[{,:" and second[:1] == "{" and _is_json(second)


def _is_json(text: str) -> bool:
    try:
        _JSON.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines_rows(path: Path, lines: Iterable[bytes], refuse: _Refuse) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(lines, 1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            place = f"{path}:{number}"
            try:
                value = _JSON.decode(str(line, "utf-8", "surrogatepass"))
            except (ValueError, RecursionError) as error:
                refuse(place, "not_json", f"not JSON ({_told(error)}): each line must be one JSON object")
                continue
            yield from _as_row(place, value, refuse)


def _as_row(place: str, value: Any, refuse: _Refuse) -> Iterator[tuple[str, Row]]:
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        value = {"conversations": value}  # Open-Reasoner-Zero: a row is a bare list of turns
    if isinstance(value, dict):
        inner = value.get("row")  # the form of the hub's own /rows service
        row = inner if isinstance(inner, dict) and "row_idx" in value else value
        if not all(map(str.isascii, row)):
            row = {replace_surrogates(name)[0]: cell for name, cell in row.items()}
        yield place, row
    else:
        refuse(place, "not_an_object", f"{type(value).__name__}: each row must be one JSON object")


class _Text:
    """A growing text: what has been read and not yet been used."""

    def __init__(self, data: BinaryIO, encoding: str):
        self._data = data
        self._decode = codecs.getincrementaldecoder(encoding)().decode
        self.text, self.at, self.ended = "", 0, False

    def more(self, size: int = _CHUNK) -> None:
        chunk = self._data.read(size)
        self.ended = not chunk
        self.text, self.at = self.text[self.at :] + self._decode(chunk, self.ended), 0

    def skip(self, characters: str) -> str:
        """Passes over these characters; the next one, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in characters:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def value(self, place: str) -> Any:
        """The JSON value that begins here, passed over."""
        size = _CHUNK
        while True:
            try:
                value, end = _JSON.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            except (ValueError, RecursionError) as error:
                if self.ended or isinstance(error, RecursionError):
                    raise UserError(f"input: {place}: not JSON ({_told(error)})") from error
            self.more(size)
            size *= 2

    def at_records(self) -> bool:
        """Whether a list of objects or lists begins here."""
        while len(self.text) - self.at < 1000 and not self.ended:
            self.more()
        return bool(re.compile(r"\[\s*[\[{]").match(self.text, self.at))


def _array_rows(
    path: Path, text: _Text, split: str, refuse: _Refuse, columns: list[str] | None = None
) -> Iterator[tuple[str, Row]]:
    text.skip(_SPACE)
    text.at += 1
    for number in itertools.count():
        if (following := text.skip(_SPACE + ",")) == "]":
            return
        place = f"{path}[{number}]"
        if not following:
            raise UserError(f"input: {place}: the JSON array is cut off")
        value = text.value(place)
        yield from _as_row(place, dict(zip(columns, value, strict=True)) if columns else value, refuse)


def _object_rows(path: Path, text: _Text, split: str, refuse: _Refuse) -> Iterator[tuple[str, Row]]:
    """Rows of the object that holds them all, streamed where its name tells so; or objects one after another."""
    text.skip(_SPACE)
    text.at += 1
    held: Row = {}
    while (following := text.skip(_SPACE + ",")) != "}":
        if not following:
            raise UserError(f"input: {path}: not JSON (cut off)")
        name = str(text.value(f"{path}[0]"))
        text.skip(_SPACE + ":")
        if name in (*_WRAPPERS, split or "train") and text.at_records():
            columns = held.get("columns")  # pandas' form "split"
            yield from _array_rows(path, text, split, refuse, columns if isinstance(columns, list) else None)
            return
        held[name] = text.value(f"{path}[0]")
    text.at += 1
    first = [held] if text.skip(_SPACE + ",") else _held_rows(path, held, split)
    for number, row in enumerate(first):
        yield from _as_row(f"{path}:1" if row is held else f"{path}[{number}]", row, refuse)
    for number in itertools.count(1):
        if not text.skip(_SPACE + ","):
            return
        yield from _as_row(f"{path}[{number}]", text.value(f"{path}[{number}]"), refuse)


def _held_rows(path: Path, held: Row, split: str) -> list[Row]:
    """The rows of a file's only object: lists of rows by split, rows by id, columns of cells; or it is one row."""
    values = list(held.values())
    cells = [cell for value in values for cell in (value if isinstance(value, list) else [value])]
    if not any(values) or any(isinstance(cell, dict) and {"role", "from"} & cell.keys() for cell in cells):
        return [held] if any(values) else []
    if all(isinstance(value, list) for value in values):
        if all(isinstance(cell, dict) for cell in cells):
            return list(values[0] if len(held) == 1 else held[pick(path, "split", split, list(held), "train")])
        if len(held) > 1 and len({len(value) for value in values}) == 1:
            return [dict(zip(held, row, strict=True)) for row in zip(*values, strict=True)]
    if len(held) > 1 and all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        if all(key.isdigit() for key in values[0]):  # pandas: columns of cells by number
            return [{name: column[key] for name, column in held.items()} for key in values[0]]
        return [{"id": key} | row for key, row in held.items()]
    return [held]


def _delimiter(path: Path, line: str) -> str:
    """What parts the cells of a CSV's header, "" where the line is none."""
    found = max(",\t;|", key=line.count)
    cells = next(csv.reader([line], delimiter=found), [])
    plain = all(re.fullmatch(r"[\w .()/#-]{0,60}", cell.strip()) for cell in cells)
    return found if (plain and len(cells) > 1) or {".csv", ".tsv"} & set(path.suffixes) else ""


def _csv_rows(path: Path, lines: Iterable[str], delimiter: str, refuse: _Refuse) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(1 << 28)  # a chain of thought is longer than csv's own limit
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names = next((cells for cells in reader if any(cells)), [])
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"input: {path}: the column {twice[0]!r} stands twice in the header")
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            refuse(f"{path}:{reader.line_num}", "not_csv", f"not CSV ({error})")
            continue
        if cells is None:
            return
        if any(cells[len(names) :]):
            refuse(f"{path}:{reader.line_num}", "more_cells_than_columns", "more cells than columns")
        elif cells:
            yield f"{path}:{reader.line_num}", dict(zip(names, map(_cell, cells), strict=False))


def _cell(cell: str) -> Any:
    """A cell of CSV: empty is none, a JSON object or list of objects is that."""
    if re.match(r'\[\s*\{\s*"|\{\s*"', cell):
        try:
            return _JSON.decode(cell)
        except (ValueError, RecursionError):
            return cell
    return cell or None


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
