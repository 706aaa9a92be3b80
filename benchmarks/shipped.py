"""The files that the benchmarks bring with them: real preference rows, and Qwen2.5's tokenizer of the tests."""

import lzma
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAIRS = ROOT / "benchmarks" / "data" / "gsm8k_pairs.jsonl.xz"
TOKENIZER = ROOT / "tests" / "data" / "qwen2.5"


def unpack(source: Path, target: Path) -> Path:
    """Copies a file to `target`, or the files of a folder into it; those that end in .xz come out unpacked."""
    for file in sorted(source.iterdir()) if source.is_dir() else [source]:
        place = target if not source.is_dir() else target / (file.stem if file.suffix == ".xz" else file.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        data = file.read_bytes()
        place.write_bytes(lzma.decompress(data) if file.suffix == ".xz" else data)
    return target
