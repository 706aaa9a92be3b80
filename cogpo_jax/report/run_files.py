"""What a page is made of, read from the folders that CRV and the trainer leave."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.records import Group, read_groups, splits, verify_manifest

MINI_TASKS = ("small", "medium", "large")


@dataclass(frozen=True)
class Training:
    """One training run: its config, and the lines of its metrics, evaluations and held-out pairs."""

    config: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Mapping[str, Any], ...]
    pairs: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Data:
    """A folder of records: what its manifest tells, and its groups by split, read anew at each iteration."""

    info: Mapping[str, Any]
    groups: Mapping[str, Iterable[Group]] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupFile:
    """The groups of one split of a verified folder: never all in memory."""

    folder: str | Path
    split: str

    def __iter__(self) -> Iterator[Group]:
        return read_groups(self.folder, self.split, verify=False)


def read_training(workdir: str | Path) -> Training:
    """Reads a workdir of launch/train.py; raises UserError where it has no metrics yet."""
    workdir = Path(workdir)
    if not (workdir / "metrics.jsonl").is_file():
        raise UserError(f"{workdir}: has no metrics.jsonl: must be the workdir of launch/train.py")
    config = workdir / "config.json"
    return Training(
        json.loads(config.read_text()) if config.is_file() else {},
        read_lines(workdir / "metrics.jsonl"),
        read_lines(workdir / "eval.jsonl"),
        read_lines(workdir / "eval_pairs.jsonl"),
    )


def read_data(folder: str | Path) -> Data:
    """Reads a folder of records with its groups; raises UserError where a shard does not match the manifest."""
    info = verify_manifest(folder)["info"]
    return Data(info, {split: GroupFile(folder, split) for split in splits(folder).get("groups", {})})


def read_lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The objects of a JSON-lines file, none where it is absent; a last line still being written is left out."""
    if not path.is_file():
        return ()
    text = path.read_text()
    return tuple(json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip())
