"""Hugging Face folders <-> parameters: streamed both ways, straight onto and off the mesh, bit for bit."""

import errno
import functools
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from cogpo_jax.atomic import atomic_folder
from cogpo_jax.errors import UserError
from cogpo_jax.progress import Bar
from cogpo_jax.sharding import array_path, check_divides, param_shardings
from cogpo_jax.student import hf_folder
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.hf_files import RemoteTensor, TensorEntry, hub_hint, write_stream
from cogpo_jax.student.model import abstract_params, graphdef_of

PARAM_DTYPES = ("float32", "bfloat16")
_ALIGNMENT = 64  # what XLA's CPU client asks of a host buffer to use it as it is, without a copy


def from_hf(
    folder: str | Path, mesh: Mesh | None = None, param_dtype: str = "float32"
) -> tuple[StudentConfig, nnx.GraphDef, dict[str, Any]]:
    """Reads a Hugging Face folder: (config, graphdef, parameters placed on `mesh`, or on the first device).

    Each process reads only the bytes of its own shards. Raises UserError for a folder that does not hold exactly the
    tensors of its config.json, before anything is read.
    """
    path = epath.Path(folder) if "://" in str(folder) else Path(folder)
    config, tensors = check_folder(path)
    abstract = abstract_params(config, _dtype("param_dtype", param_dtype))
    if mesh is not None:
        check_divides(mesh, config)
    here = SingleDeviceSharding(jax.devices()[0])
    shardings = param_shardings(mesh, abstract) if mesh else jax.tree.map(lambda _: here, abstract)
    done = 0
    with Bar(f"reading {path.name}", len(tensors), quiet=jax.process_index() != 0) as bar:

        def read(key: Any, leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
            nonlocal done
            entries = [tensors[name] for name in _hf_names(array_path(key), config)]
            remote = mesh if isinstance(entries[0].array(), RemoteTensor) else None
            first = _contiguous(leaf.shape, entries[0].shape, remote) if remote else sharding
            reader = _reader(entries, leaf)
            array = jax.make_array_from_callback(leaf.shape, first, _once(reader) if remote else reader)
            if remote:
                array = jax.device_put(array, sharding, donate=True)
            done += len(entries)
            bar.at(done)
            return array

        return config, graphdef_of(config), jax.tree_util.tree_map_with_path(read, abstract, shardings)


def check_folder(path: Path) -> tuple[StudentConfig, dict[str, TensorEntry]]:
    """The config and tensors of a Hugging Face folder, of which only JSON and headers are read.

    Raises UserError where it does not hold exactly the tensors of its config.json, or another model's tokenizer.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a Hugging Face folder{hub_hint(path)}")
    config = StudentConfig.from_hf(path)
    if (path / "tokenizer.json").is_file():
        hf_folder.check_tokenizer(path, config)
    tensors = hf_folder.find_tensors(path)
    hf_folder.check_tensors(path, tensors, _hf_shapes(config), config.tie_word_embeddings)
    return config, tensors


def to_hf(
    config: StudentConfig,
    params: Mapping[str, Any],
    folder: str | Path,
    dtype: str = "bfloat16",
    tokenizer_folder: str | Path | None = None,
    *,
    end_token: str | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes parameters (numpy or jax arrays, from any mesh) as a Hugging Face folder, whole or not at all.

    With the tokenizer, chat template and generation config of `tokenizer_folder`; `end_token` (what the student was
    trained to end with) joins the tokens that stop generation. Of several processes every one must call this, and the
    first writes. Raises UserError where the disk is full or the tokenizer is another model's.
    """
    if "://" in str(folder):
        options: dict[str, Any] = {"end_token": end_token, "max_shard_bytes": max_shard_bytes}
        write = functools.partial(to_hf, config, params, dtype=dtype, tokenizer_folder=tokenizer_folder, **options)
        return _upload(write, epath.Path(folder), overwrite)
    folder, target = Path(folder), _dtype("dtype", dtype)
    if tokenizer_folder is not None:
        tokenizer_folder = Path(tokenizer_folder)
        hf_folder.check_tokenizer(tokenizer_folder, config)
    shapes = _hf_shapes(config)
    tensors = _exported(config, params, shapes, target)
    if jax.process_index() != 0:
        for _ in tensors:  # takes part in the gathers
            pass
        return
    try:
        with atomic_folder(folder, overwrite) as temporary, Bar(f"writing {folder.name}", len(shapes)) as bar:
            _refuse_full_disk(temporary, sum(math.prod(s) for s in shapes.values()) * target.itemsize)
            _write_weights(temporary, shapes, target, max_shard_bytes, tensors, bar)
            _write_settings(temporary, config, dtype, tokenizer_folder, end_token)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{folder}: {error.strerror} while writing; nothing is left under this name") from None
        raise


def _upload(write: Callable[..., None], folder: epath.Path, overwrite: bool) -> None:
    """`to_hf` through the local disk; a bucket knows no rename, so config.json, which makes it a model, comes last.

    Weights of an earlier export that the new one does not replace are removed.
    """
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder}: exists and is not empty; give another name, or say overwrite")
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) / "hf"
        write(folder=local)
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").unlink(missing_ok=True)
            for old in folder.glob("model*.safetensors*"):
                if not (local / old.name).exists():
                    old.unlink()
            files = [file for file in local.rglob("*") if file.is_file()]
            for file in sorted(files, key=lambda file: file.name == "config.json"):
                with file.open("rb") as source, (folder / file.relative_to(local)).open("wb") as target:
                    shutil.copyfileobj(source, target, 16 << 20)


def _dtype(field: str, name: str) -> np.dtype:
    if name not in PARAM_DTYPES:
        raise UserError(f"{field}: {name!r}: must be one of {', '.join(PARAM_DTYPES)}")
    return jnp.dtype(name)


def _hf_names(path: str, config: StudentConfig) -> list[str]:
    """Our dotted path -> HF's tensor names: one, or one per layer."""
    if path.startswith("layers."):
        return [f"model.layers.{i}.{path.removeprefix('layers.')}" for i in range(config.num_hidden_layers)]
    return [path if path == "lm_head.weight" else f"model.{path}"]


def _hf_shapes(config: StudentConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model -> its shape, in HF's order: embedding, layer by layer, norm, head."""
    table: dict[str, tuple[int, ...]] = {}
    layers: list[dict[str, tuple[int, ...]]] = [{} for _ in range(config.num_hidden_layers)]
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
        name = array_path(path)
        for i, hf_name in enumerate(_hf_names(name, config)):
            if name.startswith("layers."):
                layers[i][hf_name] = leaf.shape[1:]
            else:
                table[hf_name] = leaf.shape
    first = "model.embed_tokens.weight"
    ordered = {first: table.pop(first)}
    for layer in layers:
        ordered |= layer
    return ordered | table  # what is left: the norm, and the head where it is a tensor of its own


def _contiguous(shape: Sequence[int], in_file: Sequence[int], mesh: Mesh) -> NamedSharding:
    """A sharding in which every device has a byte range of its own of each tensor in the files.

    What a bucket is read by: each byte is then downloaded once, by whoever it falls to, and the network between the
    devices, which is faster, does the rest. (`fsdp` splits columns: pieces of a few hundred bytes in the files.)
    """
    size = lambda axes: math.prod(mesh.shape[axis] for axis in axes)  # noqa: E731
    choices = [axes for n in range(len(mesh.axis_names) + 1) for axes in itertools.combinations(mesh.axis_names, n)]
    axes = max((axes for axes in choices if in_file[0] % size(axes) == 0), key=size)
    return NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - len(in_file)), axes or None))


def _once(read: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """`read`, called once for what several devices of this process hold a copy of."""
    known: dict[str, np.ndarray] = {}

    def shard(index: Any) -> np.ndarray:
        if str(index) not in known:
            known[str(index)] = read(index)
        return known[str(index)].copy()  # a CPU device may keep the buffer itself

    return shard


def _reader(entries: Sequence[TensorEntry], leaf: jax.ShapeDtypeStruct) -> Callable[[Any], np.ndarray]:
    """A callback of `make_array_from_callback`: the bytes of one shard of a (stacked) parameter."""
    stacked = leaf.ndim > len(entries[0].shape)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        shape = [len(range(*s.indices(n))) for s, n in zip(index, leaf.shape, strict=True)]
        out = _aligned_empty(shape, leaf.dtype)
        if not stacked:
            out[...] = entries[0].array()[index]
            return out
        for row, entry in zip(out, entries[index[0]], strict=True):
            row[...] = entry.array()[index[1:]]
        return out

    return shard


def _aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def _exported(
    config: StudentConfig, params: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """HF's tensors in HF's order as host arrays of `dtype`, one in memory at a time."""
    arrays = {array_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name in shapes:
        inner = name.removeprefix("model.")
        if not inner.startswith("layers."):
            yield name, to_host(arrays[inner]).astype(dtype, copy=False)
            continue
        layer, path = inner.removeprefix("layers.").split(".", 1)
        value = arrays[f"layers.{path}"]
        part = value[int(layer)] if isinstance(value, np.ndarray) else _layer(value, int(layer))
        yield name, to_host(part).astype(dtype, copy=False)


@jax.jit
def _layer(stacked: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, 0, keepdims=False)


def to_host(array: np.ndarray | jax.Array) -> np.ndarray:
    """The whole array in this host's memory; of several processes each must call this."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _write_weights(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    max_shard_bytes: int,
    tensors: Iterator[tuple[str, np.ndarray]],
    bar: Bar,
) -> None:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = total = 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * dtype.itemsize
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size, total = size + nbytes, total + nbytes
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        many = len(shards) > 1
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" if many else hf_folder.SINGLE
        with (folder / file).open("wb") as f:
            write_stream(f, shard, dtype, (next(tensors) for _ in shard))
        weight_map |= dict.fromkeys(shard, file)
        bar.at(len(weight_map))
    if len(shards) > 1:
        _write_json(folder / hf_folder.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_settings(
    folder: Path, config: StudentConfig, dtype: str, tokenizer_folder: Path | None, end_token: str | None
) -> None:
    settings = {k: v for k, v in config.to_hf().items() if k != "dtype"}
    _write_json(folder / "config.json", {**settings, "torch_dtype": dtype})
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = {name: settings[name] for name in ids if settings.get(name) is not None}
    if tokenizer_folder is not None:
        generation |= hf_folder.generation_config(tokenizer_folder)
        for file in hf_folder.tokenizer_files(tokenizer_folder):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(tokenizer_folder / file, folder / file)
        if end_token:
            generation["eos_token_id"] = _with_stop(generation.get("eos_token_id"), tokenizer_folder, end_token)
    _write_json(folder / "generation_config.json", generation)


def _with_stop(stops: int | list[int] | None, tokenizer_folder: Path, end_token: str) -> int | list[int]:
    end = hf_folder.vocabulary(tokenizer_folder).get(end_token)
    if end is None:
        raise UserError(f"{tokenizer_folder}: end token {end_token!r}: not a token of this tokenizer")
    known = hf_folder.as_list(stops)
    return stops if stops is not None and end in known else [end, *known] if known else end


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder.parent}: {free / 1e9:.2f} GB free, the export needs {needed / 1e9:.2f} GB")
