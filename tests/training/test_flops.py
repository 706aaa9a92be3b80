"""FLOPs counted in the traced step equal the formula's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.objective.cogpo import PreferenceOptions
from cogpo_jax.sharding import make_mesh
from cogpo_jax.student import blockwise, splash
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, abstract_params
from cogpo_jax.training import flops, step

STUDENT = StudentConfig.from_hf(
    {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
)
ROWS, LENGTH, CHUNK = 8, 256, 64
TILES = 2.5  # key blocks of 64 that a query block of a row of 256 sees, on average
TILE_EXCESS = 10 * 64**2 / (LENGTH * (LENGTH + 1) / 2)


def counted_flops(remat, sizes, backward=True, attention="xla"):
    mesh = make_mesh(sizes, jax.devices()[: 8 if sizes else 1])
    settings = step.StepSettings(
        STUDENT,
        ForwardOptions(attention=attention, remat=remat, mesh=mesh),
        "cogpo",
        PreferenceOptions(),
        CHUNK,
        8,
    )
    params = abstract_params(STUDENT)
    batch = {name: jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32) for name in step.ROW_FIELDS}
    batch |= {name: jax.ShapeDtypeStruct((8,), jnp.int32) for name in ("chosen", "rejected", "gap")}
    batch |= {name: jax.ShapeDtypeStruct((8,), jnp.float32) for name in ("beta", "weight", "reference_logps")}
    value = lambda p, b: step.loss(p, b, jnp.float32(1), settings)[0]  # noqa: E731
    jaxpr = jax.make_jaxpr(jax.grad(value) if backward else value)(params, batch)
    rows = ROWS if not sizes else 1
    return flops.jaxpr_flops(jaxpr, head_trips=rows * LENGTH / CHUNK, visited=TILES)


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 8}], ids=str)
def test_the_gradient_without_remat(sizes):
    found = counted_flops("none", sizes)
    needed = flops.model_flops(STUDENT, [LENGTH] * ROWS, ROWS * LENGTH)
    assert found.layers == needed.layers
    assert found.head == needed.head * 4 / 3  # logits once more: they were never kept
    assert found.attention == pytest.approx(needed.attention * TILE_EXCESS * 7 / 6)  # scores once more


def test_the_gradient_with_full_remat():
    found = counted_flops("full", {})
    needed = flops.model_flops(STUDENT, [LENGTH] * ROWS, ROWS * LENGTH, remat="full")
    assert found.layers == pytest.approx(needed.layers, rel=1e-12)
    assert found.head == needed.head
    assert found.attention == pytest.approx(needed.attention * TILE_EXCESS)


def test_the_gradient_with_dots_kept():
    found = counted_flops("dots", {})
    needed = flops.model_flops(STUDENT, [LENGTH] * ROWS, ROWS * LENGTH, remat="dots")
    assert (found.layers, found.head) == (needed.layers, needed.head)
    assert found.attention == pytest.approx(needed.attention * TILE_EXCESS)


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 8}], ids=str)
def test_splash_counts_its_forward_kernel_once_where_dots_keeps_the_result(sizes):
    """2 products forward, 3 and 4 in the two backward kernels; full remat runs the forward kernel twice."""
    kept, again = (counted_flops(remat, sizes, attention="splash").attention for remat in ("dots", "full"))
    assert kept / again == pytest.approx(9 / 11, rel=1e-3)  # and a row sum


def test_the_forward_pass_alone():
    found = counted_flops("full", {}, backward=False)
    needed = flops.model_flops(STUDENT, [LENGTH] * ROWS, ROWS * LENGTH, backward=False)
    assert (found.layers, found.head) == (needed.layers, needed.head)


def test_short_segments_need_less_attention_and_nothing_less_elsewhere():
    whole, halves = (flops.model_flops(STUDENT, segments, 100) for segments in ([256], [128, 128]))
    assert halves.attention < 0.51 * whole.attention
    assert (halves.layers, halves.head) == (whole.layers, whole.head)


def test_6n_per_token_for_a_real_student():
    """Qwen2.5-1.5B: 1.31e9 weights in its layers, 0.23e9 in its tied head."""
    student = StudentConfig.from_hf("configs/models/qwen2.5-1.5b.json")
    needed = flops.model_flops(student, [1], 1)
    assert needed.layers + needed.head == pytest.approx(6 * 1.543e9, rel=0.01)


@pytest.mark.parametrize("tile", [128, 256])
def test_visited_pairs_are_what_the_kernels_visit(tile):
    rng, length = np.random.default_rng(tile), 2048
    for count in (0, 1, 3, 9):
        segments = np.diff(np.sort(rng.choice(length, count + 1, replace=False))).tolist()
        ids = np.zeros(length, np.int32)
        ids[: sum(segments)] = np.repeat(np.arange(count) + 1, segments)
        tiles = splash.visited_tiles(splash._padding_apart(jnp.asarray(ids), tile), tile)
        assert flops.visited_pairs(segments, length, tile) == int(tiles.sum()) * tile**2
        first = blockwise._first_blocks(jnp.asarray(ids)[None], tile)
        assert (
            flops.visited_pairs(segments, length, tile) == int((jnp.arange(length // tile) - first + 1).sum()) * tile**2
        )
        causal = length // tile * (length // tile + 1) // 2
        assert flops.visited_pairs(segments, length, tile, skips=False) == causal * tile**2


def test_a_row_that_is_no_multiple_of_the_tile_is_padded():
    assert flops.visited_pairs([100], 200, 128) == 2 * 128**2
    assert flops.visited_pairs([200], 200, 128) == 3 * 128**2
