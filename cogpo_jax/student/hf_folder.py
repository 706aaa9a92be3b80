"""What a Hugging Face folder must hold before it is trusted: files, index, tokenizer (no jax)."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cogpo_jax import text
from cogpo_jax.errors import UserError
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.hf_files import TensorEntry, read_header, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def find_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a folder's safetensors files, single or sharded by an index, by its full name.

    A single file counts before an index, as in transformers: what lies beside it is older. Raises UserError where files
    are missing, damaged, or disagree with the index.
    """
    index_path = folder / INDEX
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not index_path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder}: an adapter without its base model: merge it first (peft: merge_and_unload)")
        others = sorted(file.name for file in folder.iterdir() if file.suffix in _OTHER_WEIGHTS)
        beside = f" (transformers' save_pretrained makes them of {others[0]})" if others else ""
        raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}; give a folder with safetensors weights{beside}")
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index_path}: weight_map: missing or empty")
    tensors: dict[str, TensorEntry] = {}
    for file in sorted({_plain_name(index_path, file) for file in weight_map.values()}):
        found = read_header(folder / file)
        for name in found:
            if weight_map.get(name) != file:
                raise UserError(f"{index_path}: {name}: lies in {file}, the index says {weight_map.get(name)}")
        tensors |= found
    _refuse("the index names it, no file holds it", index_path, set(weight_map) - set(tensors))
    return tensors


def check_tensors(
    folder: Path, tensors: Mapping[str, TensorEntry], expected: Mapping[str, tuple[int, ...]], tied: bool
) -> None:
    """Raises UserError for a missing, extra or misshapen tensor. A tied head may be there if it equals the table."""
    _refuse("missing", folder, set(expected) - set(tensors))
    extra = set(tensors) - set(expected)
    if tied and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        _check_tied_copy(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    _refuse("not a tensor of this model (config.json)", folder, extra)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(f"{tensors[name].path}: {name}: shape {tensors[name].shape}, config.json says {shape}")


def check_tokenizer(folder: Path, config: StudentConfig) -> None:
    """Raises UserError where the tokenizer in `folder` cannot belong to `config`: ids beyond it, another end token."""
    ids = vocabulary(folder)
    top = max(ids.values(), default=-1)
    if top >= config.vocab_size:
        raise UserError(f"{folder}: tokenizer: id {top}: config.json's vocab_size is {config.vocab_size}")
    known = json.loads(config.carried)
    for role in ("bos", "eos", "pad"):
        for number in as_list(known.get(f"{role}_token_id")):
            if not isinstance(number, int) or number >= config.vocab_size:
                raise UserError(f"{folder}: config.json: {role}_token_id: {number}: vocab_size is {config.vocab_size}")
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    eos = settings.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    allowed = as_list(known.get("eos_token_id")) + as_list(generation_config(folder).get("eos_token_id"))
    if eos is not None and allowed and ids.get(eos) not in allowed:
        raise UserError(
            f"{folder}: tokenizer: eos_token {eos!r} has id {ids.get(eos)}, config.json's eos_token_id is {allowed}"
        )


def check_exportable(config: StudentConfig, tokenizer_folder: Path, text_format: text.TextFormat) -> None:
    """Raises UserError where a student could be trained, but not exported with this tokenizer: to call before training.

    The tokenizer must belong to the config, and have the token that ends a response.
    """
    check_tokenizer(tokenizer_folder, config)
    text.end_token_id(text.load_tokenizer(tokenizer_folder), text_format)


def vocabulary(folder: Path) -> dict[str, int]:
    """Every token of a folder's tokenizer -> its id, as training reads it: all files that add tokens included."""
    return text.load_tokenizer(folder).get_vocab()


def stop_token_ids(folder: Path) -> list[int]:
    """The ids that end a text, as the folder says: generation_config.json's; where it has none, config.json's."""
    ids = as_list(generation_config(folder).get("eos_token_id"))
    if not ids and (folder / "config.json").is_file():
        ids = as_list(read_json(folder / "config.json").get("eos_token_id"))
    if not all(isinstance(i, int) for i in ids):
        raise UserError(f"{folder}: eos_token_id: {ids}: must be a token id, or a list of them")
    return ids


def tokenizer_files(folder: Path) -> list[str]:
    """Names, below `folder`, of the files that its tokenizer is made of; templates with a name lie in a folder."""
    named = sorted(f"additional_chat_templates/{f.name}" for f in folder.glob("additional_chat_templates/*.jinja"))
    return [name for name in (*_TOKENIZER_FILES, *named) if (folder / name).is_file()]


def generation_config(folder: Path) -> dict[str, Any]:
    """The folder's generation_config.json, or {}."""
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def _plain_name(index_path: Path, file: Any) -> str:
    if not isinstance(file, str) or Path(file).name != file:
        raise UserError(f"{index_path}: weight_map: {file!r}: must be the name of a file in the same folder")
    return file


def _check_tied_copy(head: TensorEntry, table: TensorEntry) -> None:
    same = head.shape == table.shape and head.dtype == table.dtype
    rows = range(0, head.shape[0], 4096) if same else ()
    a, b = head.array(), table.array()
    if not same or any((a[i : i + 4096].view("u1") != b[i : i + 4096].view("u1")).any() for i in rows):
        raise UserError(
            f"{head.path}: lm_head.weight: differs from the embedding, though config.json's tie_word_embeddings is true"
        )


def _refuse(why: str, where: Path, names: Iterable[str]) -> None:
    names = sorted(names)
    if names:
        others = f" (and {len(names) - 1} others)" if len(names) > 1 else ""
        raise UserError(f"{where}: {names[0]}{others}: {why}")


def as_list(value: Any) -> list[int]:
    """Token ids of a config field that may hold none, one or several."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]
