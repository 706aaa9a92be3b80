"""The GPU back end equals the XLA one in interpret mode, and lowers for CUDA; no GPU needed."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.student.attention import blockwise_attention, gpu_attention


def packed(heads: int, kv_heads: int, head_dim: int, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    """Random queries, keys, values and segment ids of two rows of 200 tokens, with padding."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 200, n, head_dim)), dtype) for n in (heads, kv_heads, kv_heads))
    rows = [np.repeat([1, 2, 3, 0], n) for n in ([60, 100, 30, 10], [150, 7, 43, 0])]
    return q, k, v, jnp.asarray(np.stack(rows), jnp.int32)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 64), (2, 2, 128)])
def test_forward_and_gradient_are_xla(heads: int, kv_heads: int, head_dim: int) -> None:
    q, k, v, segment_ids = packed(heads, kv_heads, head_dim)
    live = (segment_ids != 0)[..., None, None]
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.float32) * live

    def value_and_gradients(attend: Any) -> Any:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(attend(q, k, v, segment_ids, segment_ids) * weights)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    ours = value_and_gradients(lambda *args: gpu_attention(*args, interpret=True))
    expected = value_and_gradients(blockwise_attention)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_bfloat16_lowers_for_cuda_with_its_gradient() -> None:
    q, k, v, segment_ids = packed(4, 2, 64, jnp.bfloat16)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(gpu_attention(q, k, v, segment_ids, segment_ids).astype(jnp.float32))

    # jax 0.12 wants to know which GPU it lowers for.
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, v).lower(lowering_platforms=("cuda",))
    assert "triton" in lowered.as_text()


def test_without_the_triton_kernel_cudnn_gets_the_segments_as_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax 0.12 has no `mha`; cuDNN's place is taken by the same function on XLA."""
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.ops.gpu.attention", None)
    asked = jax.nn.dot_product_attention

    def on_xla(*args: Any, implementation: str, **more: Any) -> jax.Array:
        assert implementation == "cudnn"
        return asked(*args, implementation="xla", **more)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)
    q, k, v, segment_ids = packed(4, 2, 64, jnp.bfloat16)
    live = (segment_ids != 0)[..., None, None]
    out = gpu_attention(q, k, v, segment_ids, segment_ids).astype(jnp.float32)
    expected = blockwise_attention(*(x.astype(jnp.float32) for x in (q, k, v)), segment_ids, segment_ids)
    np.testing.assert_allclose(out * live, expected * live, rtol=0.03, atol=0.03)


def test_without_any_kernel_xla_does_it_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.ops.gpu.attention", None)
    q, k, v, segment_ids = packed(4, 2, 64, jnp.bfloat16)
    out = gpu_attention(q, k, v, segment_ids, segment_ids)
    assert np.array_equal(out, blockwise_attention(q, k, v, segment_ids, segment_ids))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("attention: xla instead of gpu:")


def test_float32_stays_exact() -> None:
    q, k, v, segment_ids = packed(4, 2, 64)
    out = gpu_attention(q, k, v, segment_ids, segment_ids)
    assert np.array_equal(out, blockwise_attention(q, k, v, segment_ids, segment_ids))
