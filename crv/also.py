"""The same records in other people's formats: the authors' JSON, a Hugging Face `datasets` folder, ArrayRecord.

All are read back from the TFRecords, so they hold exactly what the records hold.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cogpo_jax.atomic import atomic_file
from cogpo_jax.errors import UserError
from cogpo_jax.records import Group, Response, read_groups, read_sft, splits
from cogpo_jax.records.arrayrecord import write_array_record

FORMATS = ("authors", "datasets", "array_record")


def write_also(workdir: str | Path, formats: tuple[str, ...], beta: Mapping[str, float]) -> list[str]:
    """Writes each of `formats` beside the records of `workdir` and returns the paths.

    authors: `authors/{split}.json`, a list of {prompt, chosen, rejected, beta, gap}: as the authors released theirs,
    with `beta` by gap. datasets: `datasets/{groups,sft}`, for `datasets.load_from_disk`. array_record:
    `array_record/{groups,sft}`, which tfds and grain read by index.
    """
    folder = Path(workdir)
    written = []
    for name in formats:
        if name == "authors":
            for split in splits(folder).get("groups", {}):
                written.append(str(_write_authors(folder, split, beta)))
        elif name == "array_record":
            written.append(str(write_array_record(folder, folder / "array_record")))
        else:
            written += [str(path) for path in _write_datasets(folder)]
    return written


def response_text(response: Response) -> str:
    """A response as one plain text: thought and solution on lines of their own, or the text as it is."""
    return response.text if not response.thought else f"{response.thought}\n{response.solution}"


def _write_authors(folder: Path, split: str, beta: Mapping[str, float]) -> Path:
    path = folder / "authors" / f"{split}.json"
    with atomic_file(path) as f:
        f.write(b"[")
        for number, row in enumerate(_pairs(read_groups(folder, split), beta)):
            f.write((",\n" if number else "\n").encode() + json.dumps(row, ensure_ascii=False).encode())
        f.write(b"\n]\n")
    return path


def _pairs(groups: Iterator[Group], beta: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for group in groups:
        for pair in group.pairs:
            chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
            yield {
                "prompt": group.prompt,
                "chosen": response_text(chosen),
                "rejected": response_text(rejected),
                "beta": beta[pair.gap] if math.isnan(pair.beta) else pair.beta,
                "gap": pair.gap,
            }


def _write_datasets(folder: Path) -> Iterator[Path]:
    try:
        import datasets
    except ImportError as error:
        raise UserError("also: datasets: needs the package datasets (pip install cogpo-jax[crv])") from error
    kinds = {
        "groups": lambda split: map(_nested, read_groups(folder, split)),
        "sft": lambda split: map(vars, read_sft(folder, split)),
    }
    for name, rows in kinds.items():
        path, staging = folder / "datasets" / name, folder / "datasets" / f".{name}"
        shutil.rmtree(staging, ignore_errors=True)
        made = {
            split: datasets.Dataset.from_generator(lambda s=split, r=rows: r(s), cache_dir=str(staging / "cache"))
            for split, count in splits(folder).get(name, {}).items()
            if count
        }
        datasets.DatasetDict(made).save_to_disk(str(staging / "out"))
        shutil.rmtree(path, ignore_errors=True)
        (staging / "out").rename(path)
        shutil.rmtree(staging)
        yield path


def _nested(group: Group) -> dict[str, Any]:
    row = dict(vars(group))
    row["responses"] = [{**vars(response), "loss_spans": list(response.loss_spans)} for response in group.responses]
    row["pairs"] = [dict(vars(pair)) for pair in group.pairs]
    return row
