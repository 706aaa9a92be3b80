"""The GPU's kernels equal XLA's attention in interpret mode, and lower for CUDA; no GPU needed."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.student import flash
from cogpo_jax.student.attention import attention, blockwise_attention, tiles
from cogpo_jax.student.flash import Tile, Tiles, flash_attention

# Blocks of three sizes, so that a mix-up of queries and keys shows.
SMALL = Tiles(Tile(64, 32, 4, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2))


def packed(heads: int, kv_heads: int, head_dim: int, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    """Random queries, keys, values and segment ids of two rows of 300 tokens, with padding in the middle and behind."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 300, n, head_dim)), dtype) for n in (heads, kv_heads, kv_heads))
    rows = [np.repeat([1, 2, 3, 0], [60, 100, 130, 10]), np.repeat([1, 0, 2, 5], [150, 7, 3, 140])]
    return q, k, v, jnp.asarray(np.stack(rows), jnp.int32)


def results(attend: Any, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> Any:
    """The result of the tokens that count, and the gradients."""
    live = (ids != 0)[..., None, None]
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.float32) * live

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        out = attend(q, k, v, ids, ids)
        return jnp.sum(out * weights), out * live

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "tiles"), [(4, 2, 64, flash.BFLOAT16), (3, 1, 24, SMALL)], ids=["real", "small"]
)
def test_forward_and_gradient_are_xla(heads: int, kv_heads: int, head_dim: int, tiles: Tiles) -> None:
    arrays = packed(heads, kv_heads, head_dim)
    ours = results(lambda *args: flash_attention(*args, tiles=tiles, interpret=True), *arrays)
    for a, b in zip(ours, results(blockwise_attention, *arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_padding_is_finite() -> None:
    q, k, v, ids = packed(2, 1, 16)
    assert np.isfinite(flash_attention(q, k, v, ids, ids, interpret=True)).all()


def test_blocks_of_other_segments_are_never_read() -> None:
    """What is not a number in them changes nothing: a mask alone would let it through the products."""
    q, k, v, ids = packed(2, 1, 16)
    last = ids[0] == 3  # from token 160 on: with blocks of 32 keys the first five blocks are not its own
    broken = jnp.where((jnp.arange(300) < 160)[None, :, None, None], jnp.nan, v)
    out = flash_attention(q, k, broken, ids, ids, tiles=SMALL, interpret=True)
    block_with_its_first = 192  # the block of 64 queries that begins at 128 has tokens of the segment before
    expected = flash_attention(q, k, v, ids, ids, tiles=SMALL, interpret=True)
    np.testing.assert_array_equal(out[0, last][32:], expected[0, last][block_with_its_first - 160 :])


def test_bounds_of_the_loops() -> None:
    ids = jnp.asarray([np.repeat([1, 2, -1, -2, 3], [40, 50, 1, 1, 36])], jnp.int32)
    assert flash._first(ids, Tile(32, 16, 1, 1))[0, :4].tolist() == [0, 0, 2, 5]
    assert flash._last(ids, Tile(16, 32, 1, 1))[0, :4].tolist() == [2, 5, 7, 7]


def test_bfloat16_lowers_for_cuda_with_its_gradient() -> None:
    q, k, v, segment_ids = packed(4, 2, 64, jnp.bfloat16)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = attention(q, k, v, segment_ids, segment_ids, backend="gpu")
        return jnp.sum(out.astype(jnp.float32))

    # jax 0.12 wants to know which GPU it lowers for.
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, v).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert all(name in text for name in ("forward_kernel", "query_gradient", "key_gradient"))


def test_without_triton_xla_does_it_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cogpo_jax.student.flash", None)  # as where a later jax has no Pallas Triton
    q, k, v, segment_ids = packed(4, 2, 64, jnp.bfloat16)
    out = attention(q, k, v, segment_ids, segment_ids, backend="gpu")
    assert np.array_equal(out, blockwise_attention(q, k, v, segment_ids, segment_ids))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("attention: xla instead of gpu:")


def test_float32_stays_exact() -> None:
    q, k, v, segment_ids = packed(4, 2, 64)
    out = attention(q, k, v, segment_ids, segment_ids, backend="gpu")
    assert np.array_equal(out, blockwise_attention(q, k, v, segment_ids, segment_ids))


def test_the_accounting_knows_what_is_skipped() -> None:
    assert tiles("gpu", "bfloat16", 8192, 6) == (128, True)
    assert tiles("gpu", "float32", 8192, 6) == tiles("xla", "float32", 8192, 6)
