"""What XLA's CPU back end makes of a small student's gradient: no work twice, no copies that a tiny step would feel."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.layers import project
from cogpo_jax.student.model import ForwardOptions, abstract_params, graphdef_of

ROWS, LENGTH, WIDTH = 2, 192, 32


def config(layers: int) -> StudentConfig:
    return StudentConfig(
        model_type="qwen2",
        vocab_size=50,
        hidden_size=WIDTH,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=LENGTH,
    )


def gradient(layers: int, remat: str = "none"):
    """(the gradient as a function of parameters and rows, what it is called with)."""
    graphdef = graphdef_of(config(layers))
    ids = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)

    def loss(params, tokens, segment_ids, positions):
        return nnx.merge(graphdef, params)(tokens, segment_ids, positions, ForwardOptions(remat=remat)).sum()

    return jax.grad(loss), (abstract_params(config(layers)), ids, ids, ids)


@functools.cache
def compiled(layers: int) -> str:
    function, arguments = gradient(layers)
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_rotary_tables_are_computed_once() -> None:
    for name in ("cosine", "sine"):
        assert len(re.findall(rf" {name}\(", compiled(2))) == 1


def test_queries_keys_and_values_are_joined_without_padding() -> None:
    whole = rf"f32\[{ROWS},{LENGTH},2,4,8\]"  # by key head: two of queries, keys, values
    assert re.search(whole, compiled(2))
    assert not re.search(rf"{whole}\S* pad\(", compiled(2))


@pytest.mark.parametrize(
    ("layers", "remat", "unrolled"), [(4, "none", True), (5, "none", False), (4, "dots", False), (4, "full", False)]
)
def test_few_layers_are_written_out_and_rematerialised_ones_never(layers: int, remat: str, unrolled: bool) -> None:
    function, arguments = gradient(layers, remat)
    jaxpr = jax.make_jaxpr(function)(*arguments)
    loops = [e for e in jaxpr.eqns if e.primitive.name == "scan" and e.params["length"] == layers]
    assert len(loops) == 2  # forward, backward
    assert {e.params["unroll"] for e in loops} == {layers if unrolled else 1}


def test_a_weights_gradient_copies_nothing_transposed() -> None:
    x, d_y = (jax.ShapeDtypeStruct((ROWS, LENGTH, n), jnp.float32) for n in (WIDTH, 24))
    weight = jax.ShapeDtypeStruct((24, WIDTH), jnp.float32)
    pull = lambda x, w, d: jax.vjp(project, jnp.tanh(x), w)[1](d * 2)  # noqa: E731
    text = jax.jit(pull).lower(x, weight, d_y).compile().as_text()
    assert f"f32[{ROWS * LENGTH},{WIDTH}]" in text
    assert f"f32[{WIDTH},{ROWS * LENGTH}]" not in text
    assert f"f32[24,{ROWS * LENGTH}]" not in text
