"""The student fed a few tokens at a time: a key-value cache, and attention over it. Pure functions on arrays.

A row of the cache holds one sequence, token i at index i. A layer's cache is a list of segments, arrays of 128 tokens
and more: attention reads each of them where it lies, for XLA copies a slice of one long array before it is read. For
the same reason layers are unrolled over weights of their own, not scanned over stacked ones.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from cogpo_jax.sharding import array_path, shard, sharding, spec
from cogpo_jax.student.config import LOGICAL_AXES, StudentConfig
from cogpo_jax.student.layers import rope_tables
from cogpo_jax.student.model import ForwardOptions, Student, graphdef_of

SEGMENT = 128  # tokens of the first segments of a cache
LayerCache = tuple[tuple[Array, ...], tuple[Array, ...]]  # keys and values, each in segments [B, K, S, dh]
Cache = tuple[LayerCache, ...]
_Running = tuple[Array, Array, Array]  # of an attention: highest score, sum of weights, weighted sum of values
_AXES = ("rows", "kv_heads", None, None)


def unstack(config: StudentConfig, params: Any, options: ForwardOptions) -> tuple[Any, list[Any]]:
    """(parameters outside the layers, one nested dict per layer), in the compute dtype, sharded like the trainer's."""
    dtype, mesh = jnp.dtype(options.compute_dtype), options.mesh

    def placed(path: Any, stacked: bool) -> NamedSharding | None:
        axes = LOGICAL_AXES[array_path(path)]
        return sharding(mesh, *(axes[1:] if stacked else axes)) if mesh else None

    def cast(path: Any, leaf: Array) -> Array:
        return jax.jit(lambda x: x.astype(dtype), out_shardings=placed(path, False))(leaf)

    def slices(path: Any, leaf: Array) -> list[Array]:
        take = jax.jit(lambda x, i: x[i].astype(dtype), out_shardings=placed(path, True))
        return [take(leaf, i) for i in range(config.num_hidden_layers)]

    rest = {name: value for name, value in params.items() if name != "layers"}
    rest = jax.tree_util.tree_map_with_path(cast, rest)
    stacked = jax.tree_util.tree_map_with_path(slices, {"layers": params["layers"]})["layers"]
    is_slices = lambda x: isinstance(x, list)  # noqa: E731
    pick = lambda i: jax.tree.map(lambda x: x[i], stacked, is_leaf=is_slices)  # noqa: E731
    return rest, [pick(i) for i in range(config.num_hidden_layers)]


def whole_student(config: StudentConfig, rest: Any, layer: Any) -> Student:
    """The student with one layer's (unstacked) parameters in the place of its layers."""
    return nnx.merge(graphdef_of(config), {**rest, "layers": layer})


def segments(tokens: int) -> list[int]:
    """Lengths of the segments that hold so many tokens: four of 128, two each of 256, 512 and 1,024, then 2,048 each.

    Where a segment ends does not depend on how many there are, so that a row's bits do not either. On a GPU none is
    shorter than 1,024: each one is kernels to start and a condition that the host waits for, which take longer than
    the tokens that they save.
    """
    if jax.default_backend() == "gpu":
        return [1024] * -(-tokens // 1024)
    lengths = [SEGMENT]
    while sum(lengths) < tokens:
        done = sum(lengths)
        lengths.append(SEGMENT if done < 4 * SEGMENT else min(2048, 1 << (done.bit_length() - 2)))
    return lengths


def size_of(cache: Cache) -> int:
    """Tokens that a row has room for."""
    return sum(keys.shape[2] for keys in cache[0][0])


def empty_cache(config: StudentConfig, rows: int, tokens: int, options: ForwardOptions) -> Cache:
    """A cache of zeros for `rows` sequences of at least so many tokens."""
    return extended(((((), ()),) * config.num_hidden_layers), config, rows, tokens, options)


def extended(cache: Cache, config: StudentConfig, rows: int, tokens: int, options: ForwardOptions) -> Cache:
    """The cache with segments of zeros behind its own, where it has no room for so many tokens; its own are kept."""
    place = sharding(options.mesh, *_AXES) if options.mesh else None

    def more(held: tuple[Array, ...]) -> tuple[Array, ...]:
        shapes = [(rows, config.num_key_value_heads, n, config.head_dim) for n in segments(tokens)[len(held) :]]
        return *held, *(jnp.zeros(shape, options.compute_dtype, device=place) for shape in shapes)

    return tuple((more(keys), more(values)) for keys, values in cache)


def extend(
    rest: Any,
    layers: Sequence[Any],
    cache: Cache,
    tokens: Int[Array, "B T"],
    start: Int[Array, " B"],
    bound: Int[Array, ""],
    config: StudentConfig,
    options: ForwardOptions,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Feeds `tokens` behind the first `start` ones of each row: (hidden states before the final norm, the cache).

    bound: no token that matters sees an index at or beyond it. For use inside jit; `prefill_layer` is one layer of it.
    """
    x = whole_student(config, rest, layers[0]).embed_tokens(tokens, options.compute_dtype, options.mesh)
    updated = []
    for layer, layer_cache in zip(layers, cache, strict=True):
        x, layer_cache = _layer(rest, layer, x, layer_cache, start, bound, config, options)
        updated.append(layer_cache)
    return x, tuple(updated)


@functools.partial(jax.jit, static_argnames=("config", "options"))
def embed_tokens(rest: Any, layer: Any, tokens: Array, config: StudentConfig, options: ForwardOptions) -> Array:
    """The rows of the embedding, in the compute dtype."""
    return whole_student(config, rest, layer).embed_tokens(tokens, options.compute_dtype, options.mesh)


@functools.partial(jax.jit, static_argnames=("config", "options"), donate_argnames=("x", "cache"))
def prefill_layer(
    rest: Any,
    layer: Any,
    x: Float[Array, "B T D"],
    cache: LayerCache,
    start: Int[Array, " B"],
    config: StudentConfig,
    options: ForwardOptions,
) -> tuple[Array, LayerCache]:
    """One layer of `extend`, compiled alone: all layers share its program, however many there are."""
    bound = start.max() + x.shape[1]
    return _layer(rest, layer, x, cache, start, bound, config, options)


def _layer(
    rest: Any,
    layer: Any,
    x: Array,
    cache: LayerCache,
    start: Array,
    bound: Array,
    config: StudentConfig,
    options: ForwardOptions,
) -> tuple[Array, LayerCache]:
    block, mesh = whole_student(config, rest, layer).layers, options.mesh
    rope = rope_tables(config, start[:, None] + jnp.arange(x.shape[1]))
    q, k, v = block.self_attn.qkv(block.input_layernorm(x), rope, mesh)
    attended, cache = _attention(q, k, v, cache, start, bound, mesh)
    return block.finish(x, attended, mesh), cache


def _attention(
    q: Array, k: Array, v: Array, cache: LayerCache, start: Array, bound: Array, mesh: Mesh | None
) -> tuple[Array, LayerCache]:
    f = attend
    if mesh is not None and mesh.size > 1:
        heads, kv_heads, rows = spec("rows", None, "heads", None), spec("rows", None, "kv_heads", None), spec("rows")
        both = jax.tree.map(lambda _: spec(*_AXES), cache)
        f = shard(attend, mesh, (heads, kv_heads, kv_heads, both, rows, spec()), (heads, both))
    with jax.named_scope("attention"):
        return f(q, k, v, cache, start, bound)


def attend(
    q: Float[Array, "B T H dh"],
    k: Float[Array, "B T K dh"],
    v: Float[Array, "B T K dh"],
    cache: LayerCache,
    start: Int[Array, " B"],
    bound: Int[Array, ""],
) -> tuple[Float[Array, "B T H dh"], LayerCache]:
    """Writes k and v at each row's `start`, then lets query t see the indices up to start + t. Softmax in float32.

    Goes over the cache segment by segment up to `bound`, with the running maximum of flash attention (arXiv
    2205.14135). A segment that a row may not see changes nothing in it, not even by rounding: what a row gets does not
    depend on how long its neighbours are.
    """
    keys, values = (_written(old, new.swapaxes(1, 2), start) for old, new in zip(cache, (k, v), strict=True))
    rows, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    dot = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    grouped = q.reshape(rows, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    last_seen = start[:, None] + jnp.arange(length)

    def segment(first: int, key: Array, value: Array, carry: _Running) -> _Running:
        highest, total, out = carry
        scores = dot("bkgtd,bksd->bkgts", grouped, key) / math.sqrt(head_dim)
        visible = (first + jnp.arange(key.shape[2])) <= last_seen[:, :, None]
        scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
        higher = jnp.maximum(highest, scores.max(axis=-1))  # finite: index 0 is in the first segment, and always seen
        weights, fade = jnp.exp(scores - higher[..., None]), jnp.exp(highest - higher)
        added = dot("bkgts,bksd->bkgtd", weights.astype(value.dtype), value)
        return higher, total * fade + weights.sum(axis=-1), out * fade[..., None] + added

    shape = (rows, kv_heads, heads // kv_heads, length)
    carry: _Running = jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros((*shape, head_dim))
    first = 0
    for key, value in zip(keys, values, strict=True):
        read = functools.partial(segment, first, key, value)
        carry = jax.lax.cond(first < bound, read, lambda carry: carry, carry) if first else read(carry)
        first += key.shape[2]
    _, total, out = carry
    out = (out / total[..., None]).transpose(0, 3, 1, 2, 4)
    return out.reshape(q.shape).astype(q.dtype), (keys, values)


def _written(old: tuple[Array, ...], new: Float[Array, "B K T dh"], start: Int[Array, " B"]) -> tuple[Array, ...]:
    """The segments, with `new` at each row's `start`; what would lie behind the last segment is left out."""
    length, first, written = new.shape[2], 0, []
    for held in old:
        # The window of the segment into which row r's tokens fall; where they do not fill it, it keeps what it holds.
        window = min(length, held.shape[2])
        at = jnp.clip(start - first, 0, held.shape[2] - window)
        index = first + at[:, None] + jnp.arange(window) - start[:, None]  # of the new token that belongs there
        fits = ((index >= 0) & (index < length))[:, None, :, None]
        moved = jnp.take_along_axis(new, jnp.clip(index, 0, length - 1)[:, None, :, None], axis=2)
        take = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=window, axis=1)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
        written.append(jax.vmap(put)(held, jnp.where(fits, moved, jax.vmap(take)(held, at)), at))
        first += held.shape[2]
    return tuple(written)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="cache")
def insert(cache: Cache, new: Cache, slots: Int[Array, " R"], mesh: Mesh | None) -> Cache:
    """Copies row r of `new` over the first segments of row `slots[r]`, counted within r's row shard; -1: nowhere."""

    def local(cache: Cache, new: Cache, slots: Array) -> Cache:
        def part(held: tuple[Array, ...], more: tuple[Array, ...]) -> tuple[Array, ...]:
            for r in range(slots.shape[0]):
                put = functools.partial(_put, r=r, slot=slots[r])
                held = *map(put, held, more), *held[len(more) :]
            return held

        return tuple((part(k, new_k), part(v, new_v)) for (k, v), (new_k, new_v) in zip(cache, new, strict=True))

    if mesh is None or mesh.size == 1:
        return local(cache, new, slots)
    whole, part = (jax.tree.map(lambda _: spec(*_AXES), x) for x in (cache, new))
    return shard(local, mesh, (whole, part, spec("rows")), whole)(cache, new, slots)


def _put(old: Array, new: Array, *, r: int, slot: Array) -> Array:
    at = (jnp.maximum(slot, 0), 0, 0, 0)
    row = new[r : r + 1]
    kept = jax.lax.dynamic_slice(old, at, row.shape)
    return jax.lax.dynamic_update_slice(old, jnp.where(slot >= 0, row, kept), at)
