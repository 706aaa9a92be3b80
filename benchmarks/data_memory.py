"""Peak memory of reading 10,000 and 1,000,000 rows, each in a fresh process: it must not grow with the input.

    python benchmarks/data_memory.py [--rows=1000000] [--containers=parquet,jsonl.gz]

Synthetic problems with chains of about 350 characters, as Parquet and as .jsonl.gz, read and recognised as
`cogpo crv` and `cogpo convert` do. Prints one JSON object a run: rows, container, peak memory and seconds.
"""

import gzip
import json
import re
import subprocess
import sys
import tempfile
import time
from itertools import chain, islice
from pathlib import Path

from absl import flags

from cogpo_jax import cli

ROWS = flags.DEFINE_integer("rows", 1_000_000, "Rows of the large file; the small one has 10,000.")
CONTAINERS = flags.DEFINE_list("containers", ["parquet", "jsonl.gz"], "The containers to read.")
FILE = flags.DEFINE_string("read", "", "Reads this file and prints its peak (the script's own child).")


def make(path: Path, rows: int) -> None:
    """Writes `rows` synthetic rows, a batch in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    def batch(start: int, size: int) -> list[dict[str, str]]:
        numbers = range(start, min(start + size, rows))
        cot = "<think>\n{} plus one is the next number. {}\n</think>\n\nThe answer is {}"
        return [
            {"problem": f"{i} + 1?", "answer": f"{i + 1}", "cot": cot.format(i, "So. " * 64, i + 1)} for i in numbers
        ]

    starts = range(0, rows, 10_000)
    if path.suffix == ".gz":
        with gzip.open(path, "wt", compresslevel=1) as file:
            for start in starts:
                file.writelines(json.dumps(row) + "\n" for row in batch(start, 10_000))
        return
    with parquet.ParquetWriter(path, pa.Table.from_pylist(batch(0, 1)).schema) as writer:
        for start in range(0, rows, 100_000):
            writer.write_table(pa.Table.from_pylist(batch(start, 100_000)))


def read(path: str) -> None:
    """Reads and recognises every row; prints the peak."""
    from cogpo_jax.records.reader import read_rows
    from cogpo_jax.records.recognise import FIRST_ROWS, recognise

    began = time.monotonic()
    rows = read_rows(path)
    first = list(islice(rows, FIRST_ROWS))
    meaning = recognise([row for _, row in first])
    count = sum(not meaning.example(row).dropped for _, row in chain(first, rows))
    # Not getrusage: its peak is inherited from the parent at fork.
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"rows": count, "container": Path(path).name, "peak_mib": round(peak), "seconds": seconds}))


def main() -> None:
    if FILE.value:
        read(FILE.value)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in CONTAINERS.value:
            for rows in (10_000, ROWS.value):
                path = Path(folder) / f"a.{name}"
                make(path, rows)
                subprocess.run([sys.executable, __file__, f"--read={path}"], check=True)


if __name__ == "__main__":
    cli.run(main)
