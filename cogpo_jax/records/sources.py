"""Which files a source means: a file, a folder, a glob, a cloned repository, a config and a split of it."""

import glob
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError

_EXTENSIONS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "dev": "validation"}
_SPLITS |= dict.fromkeys(("validation", "valid", "val"), "validation")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json")


def fingerprint(source: str | os.PathLike[str], split: str = "") -> str:
    """The sha256 of what `read_rows` reads: of the file, or of all files' sums; a remote name stands for itself."""
    if remote_parts(os.fspath(source)):
        return f"{source} {split}".strip()
    sums = []
    for path in find_files(source, split):
        with open(path, "rb") as file:
            sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    return sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()


def find_files(source: str | os.PathLike[str], split: str = "") -> list[Path]:
    """The local files of a source, in the order they are read in; UserError lists the configs or splits there are."""
    name, config, named = os.fspath(source), "", ""
    if not Path(name).exists():
        name, config, named = _parts(name.removeprefix("hf:"))
    split, path = split or named, Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _folder_files(path, config, split)
    if found := sorted(file for file in map(Path, glob.glob(name, recursive=True)) if file.is_file()):  # noqa: PTH207
        return found
    raise UserError(
        f"input: {os.fspath(source) or '(empty)'}: no such file or folder; give a file of rows (JSONL, JSON, CSV,"
        " Parquet, Arrow), a folder or glob of those, or hf:NAME[@CONFIG][:SPLIT]"
    )


def _parts(name: str) -> tuple[str, str, str]:
    """NAME[@CONFIG][:SPLIT] -> (name, config, split)."""
    name, _, split = name.partition(":")
    name, _, config = name.partition("@")
    return name, config, split


def named_split(source: str | os.PathLike[str]) -> str:
    """The split that a source itself names."""
    return "" if Path(source).exists() else _parts(os.fspath(source).removeprefix("hf:"))[2]


def remote_parts(source: str) -> tuple[str, str, str] | None:
    """(name, config, split) of an `hf:` name that is no local folder, None of anything else."""
    if not source.startswith("hf:"):
        return None
    name, config, split = _parts(source[3:])
    return None if Path(source[3:]).exists() or Path(name).exists() else (name, config, split)


def _folder_files(folder: Path, config: str, split: str) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = _load_json(folder / "dataset_dict.json").get("splits", [])
        folder = folder / pick(folder, "split", split, splits, "train")
        split = ""
    if (folder / "state.json").is_file():
        return [folder / entry["filename"] for entry in _load_json(folder / "state.json")["_data_files"]]
    configs = _card_configs(folder)
    by_split = configs[pick(folder, "config", config, list(configs), "default")] if configs else None
    if by_split is None:
        if config:
            raise UserError(f"input: {folder}: config {config!r}: it has no configs; leave @{config} out")
        by_split = _guessed_splits(folder)
    if not any(by_split.values()):
        raise UserError(f"input: {folder}: no data in it; want files ending in {', '.join(_EXTENSIONS)}")
    return by_split[pick(folder, "split", split, list(by_split), "train")]


def pick(folder: Path, what: str, wanted: str, there: list[str], usual: str) -> str:
    """The wanted one of a folder's configs or splits, else the usual or only one; UserError lists those there are."""
    if wanted in there or _SPLITS.get(wanted) in there:
        return wanted if wanted in there else _SPLITS[wanted]
    if not wanted and usual in there:
        return usual
    begins = [name for name in there if name.startswith(usual)] if len(there) > 1 else there
    if not wanted and len(begins) == 1:
        return begins[0]
    how = f"hf:{folder}{'@' if what == 'config' else ':'}{(there or ['NAME'])[0]}"
    said = f"{what} {wanted!r}: not there" if wanted else f"several {what}s"
    raise UserError(f"input: {folder}: {said}; it has {', '.join(there) or 'none'}: give one, as in {how}")


def _card_configs(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The configs that a cloned repository's README.md declares: name -> split -> files."""
    import yaml

    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.M)
    if not text.startswith("---") or len(parts) < 3:
        return {}
    try:
        declared = (yaml.safe_load(parts[1]) or {}).get("configs") or []
        found: dict[str, dict[str, list[Path]]] = {}
        for entry in declared:
            name, base = str(entry.get("config_name", "default")), folder / (entry.get("data_dir") or "")
            files = entry.get("data_files") or []
            files = [files] if isinstance(files, str | dict) else files
            found[name] = {} if files else _guessed_splits(base)
            for item in files:
                item = item if isinstance(item, dict) else {"split": "train", "path": item}
                paths = item["path"] if isinstance(item["path"], list) else [item["path"]]
                at = [file for path in paths for file in sorted(base.glob(path)) if file.is_file()]
                found[name].setdefault(str(item.get("split", "train")), []).extend(at)
            if entry.get("default") and name != "default":
                found.setdefault("default", found[name])
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"input: {card}: its configs cannot be read ({' '.join(str(error).split())[:150]})") from error
    return found


def _guessed_splits(folder: Path) -> dict[str, list[Path]]:
    """A folder's data files by the split that their names tell, `train` where none does."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder)
        name = re.sub(r"\.(gz|zst|lz4|bz2|xz)$", "", path.name.lower())
        hidden = any(part.startswith((".", "_")) for part in within.parts)
        if not name.endswith(_EXTENSIONS) or name in _NOT_DATA or hidden or not path.is_file():
            continue
        stem = name.rpartition(".")[0]
        shard = _SHARD.fullmatch(stem)
        words = [w for part in (stem, *within.parts[-2::-1]) for w in re.split(r"[^a-z]+", part.lower())]
        told = next((_SPLITS[word] for word in words if word in _SPLITS), "train")
        found.setdefault(shard[1] if shard else told, []).append(path)
    return found


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"input: {path}: damaged ({error})") from error
