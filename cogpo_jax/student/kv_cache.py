"""The student fed a few tokens at a time: a key-value cache, and attention over it. Pure functions on arrays.

A row of the cache holds one sequence, token i at index i. Layers are unrolled over weights of their own here, not
scanned over stacked ones: a step reads every weight once, and slicing a layer off the stack first would triple that
(CPU, 0.5B: 417 against 140 ms).
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

BLOCK = 128  # cache indices attended to at a time; a cache has a multiple of it
LayerCache = tuple[Array, Array]  # keys and values [B, K, S, dh]
Cache = tuple[LayerCache, ...]
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


def empty_cache(config: StudentConfig, rows: int, size: int, options: ForwardOptions) -> Cache:
    """A cache of zeros for `rows` sequences of `size` tokens (a multiple of BLOCK)."""
    shape = rows, config.num_key_value_heads, size, config.head_dim
    place = sharding(options.mesh, *_AXES) if options.mesh else None
    zeros = lambda: jnp.zeros(shape, options.compute_dtype, device=place)  # noqa: E731
    return tuple((zeros(), zeros()) for _ in range(config.num_hidden_layers))


@functools.partial(jax.jit, static_argnames="size")
def padded(cache: Cache, size: int) -> Cache:
    """A copy of the cache with room for `size` tokens a row, at least as many as it has."""
    more = size - cache[0][0].shape[2]
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))), cache)


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
        both = (spec(*_AXES), spec(*_AXES))
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

    Goes over the cache block by block up to `bound`, with the running maximum of flash attention (arXiv 2205.14135). A
    block that a row may not see changes nothing in it, not even by rounding: what a row gets does not depend on how
    long its neighbours are.
    """
    write = jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (0, at, 0)))
    keys, values = (write(old, new.swapaxes(1, 2), start) for old, new in zip(cache, (k, v), strict=True))
    rows, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    dot = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    grouped = q.reshape(rows, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    last_seen = start[:, None] + jnp.arange(length)

    def block(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, out = carry
        part = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=i * BLOCK, slice_size=BLOCK, axis=2)
        scores = dot("bkgtd,bksd->bkgts", grouped, part(keys)) / math.sqrt(head_dim)
        visible = (i * BLOCK + jnp.arange(BLOCK)) <= last_seen[:, :, None]
        scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
        higher = jnp.maximum(highest, scores.max(axis=-1))  # finite: index 0 is in the first block, and always seen
        weights, fade = jnp.exp(scores - higher[..., None]), jnp.exp(highest - higher)
        added = dot("bkgts,bksd->bkgtd", weights.astype(values.dtype), part(values))
        return higher, total * fade + weights.sum(axis=-1), out * fade[..., None] + added

    shape = (rows, kv_heads, heads // kv_heads, length)
    carry = jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros((*shape, head_dim))
    _, total, out = jax.lax.fori_loop(0, -(-bound // BLOCK), block, carry)
    out = (out / total[..., None]).transpose(0, 3, 1, 2, 4)
    return out.reshape(q.shape).astype(q.dtype), (keys, values)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="cache")
def insert(cache: Cache, new: Cache, slots: Int[Array, " R"], mesh: Mesh | None) -> Cache:
    """Copies row r of `new` over the start of row `slots[r]` of `cache`, counted within r's row shard; -1: nowhere."""

    def local(cache: Cache, new: Cache, slots: Array) -> Cache:
        for r in range(slots.shape[0]):
            cache = jax.tree.map(functools.partial(_put, r=r, slot=slots[r]), cache, new)
        return cache

    if mesh is None or mesh.size == 1:
        return local(cache, new, slots)
    whole = jax.tree.map(lambda _: spec(*_AXES), cache)
    return shard(local, mesh, (whole, whole, spec("rows")), whole)(cache, new, slots)


def _put(old: Array, new: Array, *, r: int, slot: Array) -> Array:
    at = (jnp.maximum(slot, 0), 0, 0, 0)
    row = new[r : r + 1]
    kept = jax.lax.dynamic_slice(old, at, row.shape)
    return jax.lax.dynamic_update_slice(old, jnp.where(slot >= 0, row, kept), at)
