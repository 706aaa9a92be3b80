"""How much attention work the kernels do beyond what is needed, on rows packed from real lengths.

    python benchmarks/attention_excess.py --lengths=lengths.json [--row_length=16384]

`--lengths` is a JSON list of token counts, or JSONL whose objects hold texts that `--tokenizer` (a tokenizer.json)
counts: every string field of `--fields`, joined. Longer ones than a row are left out and counted. Rows are filled best
fit, longest first. Needed: sum over segments of n (n + 1) / 2 pairs. Plain causal: every tile at or below the row's
diagonal, as jax's splash attention visits them. Ours: the tiles that `student.splash.visited_tiles` names.
One JSON line for each tile size; needs no accelerator.
"""

import bisect
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.student.splash import _padding_apart, tile_size, visited_tiles

LENGTHS = flags.DEFINE_string("lengths", None, "JSON list of token counts, or JSONL of texts (with --tokenizer).")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "tokenizer.json that counts the texts' tokens.")
FIELDS = flags.DEFINE_list("fields", "problem,cot,response", "Fields of the JSONL that make up one sequence.")
ROW_LENGTH = flags.DEFINE_integer("row_length", 16384, "Tokens in a row.")


def read_lengths(path: str) -> list[int]:
    """Token counts of the sequences in `path`."""
    if not path or not Path(path).is_file():
        raise UserError(f"--lengths: {path}: no such file; give a JSON list of token counts or JSONL of texts")
    content = Path(path).read_bytes()
    if not TOKENIZER.value:
        return [int(n) for n in json.loads(content)]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(TOKENIZER.value)
    rows = [json.loads(line) for line in content.splitlines()]
    return [len(tokenizer.encode("\n".join(row.get(f) or "" for f in FIELDS.value)).ids) for row in rows]


def pack(lengths: list[int], row_length: int) -> list[list[int]]:
    """Best fit, longest first: each sequence into the fullest row that still takes it."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for n in sorted(lengths, reverse=True):
        at = bisect.bisect_left(free, (n, 0))
        left, row = free.pop(at) if at < len(free) else (row_length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(n)
        bisect.insort(free, (left - n, row))
    return rows


def visited(row: list[int], row_length: int, tile: int) -> int:
    """Query-key pairs in the tiles that our attention visits in one row."""
    ids = np.zeros(row_length, np.int32)
    ids[: sum(row)] = np.repeat(np.arange(len(row)) + 1, row)
    return int(visited_tiles(_padding_apart(jnp.asarray(ids), tile), tile).sum()) * tile * tile


def main() -> None:
    """Packs the lengths into rows and prints the excess for each tile size."""
    row_length = ROW_LENGTH.value
    default = tile_size(row_length)
    lengths = read_lengths(LENGTHS.value)
    fitting = [n for n in lengths if 0 < n <= row_length]
    rows = pack(fitting, row_length)
    needed = sum(n * (n + 1) // 2 for n in fitting)
    for tile in (128, 256, 512, 1024):
        if row_length % tile:
            continue
        blocks = row_length // tile
        line = {
            "row_length": row_length,
            "tile": tile,
            "default": tile == default,
            "rows": len(rows),
            "sequences": len(fitting),
            "left_out": len(lengths) - len(fitting),
            "fill": round(sum(fitting) / len(rows) / row_length, 4),
            "excess": round(sum(visited(row, row_length, tile) for row in rows) / needed, 3),
            "plain_causal_excess": round(len(rows) * blocks * (blocks + 1) // 2 * tile * tile / needed, 3),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    cli.run(main)
