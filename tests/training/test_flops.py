"""FLOPs counted in the traced step equal the formula's.

XLA's own cost analysis counts a loop's body once; the counter below counts a scan's length. A multiply-add is 2 FLOPs;
only matrix products count. Loops whose trip count depends on data (the head over counted tokens, attention over visited
tiles) need to be told it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.configs import cogpo_tpu
from cogpo_jax.data.batches import PreferenceBatch, Rows
from cogpo_jax.objective.cogpo import PreferenceOptions
from cogpo_jax.sharding import make_mesh, row_shards
from cogpo_jax.student import attention as attention_module
from cogpo_jax.student import splash
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, abstract_params
from cogpo_jax.tpu import check, programs
from cogpo_jax.training import log as flops
from cogpo_jax.training import step

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


def jaxpr_flops(jaxpr, *, head_trips, visited):
    """FLOPs of a traced program (`jax.jit(f).trace(...).jaxpr` or `jax.make_jaxpr`), over all devices.

    head_trips: rounds of the head's inner loop (chunks of counted tokens on a device). visited: share of the attention
    kernel's grid, or rounds of XLA attention's inner loop, that are worked on.
    """
    return _count(jaxpr, "layers", 1.0, {"head": head_trips, "attention": visited})


def _count(jaxpr, part, times, trips):
    total = flops.Flops()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        here = _part(str(eqn.source_info.name_stack), part)
        name = eqn.primitive.name
        if not eqn.effects and all(type(out).__name__ == "DropVar" for out in eqn.outvars):
            continue  # dead: remat leaves the forward kernel behind, with no outputs, where it keeps its result
        if name == "dot_general":
            total += flops.Flops(**{here: times * _dot(eqn)})
        elif name == "scan":
            total += _count(eqn.params["jaxpr"], here, times * eqn.params["length"], trips)
        elif name == "while":
            total += _count(eqn.params["body_jaxpr"], here, times * trips.get(here, 1.0), trips)
        elif name == "cond":
            branches = [_count(branch, here, times, trips) for branch in eqn.params["branches"]]
            total += max(branches, key=lambda found: found.total)
        elif name == "shard_map":
            mesh, axes = eqn.params["mesh"], eqn.params["newly_manual_axes"]
            devices = math.prod(mesh.shape[axis] for axis in axes)
            total += _count(eqn.params["jaxpr"], here, times * devices, trips)
        elif name == "pallas_call":
            steps = math.prod(int(n) for n in eqn.params["grid_mapping"].grid)
            total += _count(eqn.params["jaxpr"], here, times * steps * trips.get(here, 1.0), trips)
        else:
            for inner in _inner(eqn.params.values()):
                total += _count(inner, here, times, trips)
    return total


def _part(name_stack, outer):
    return next((part for part in ("attention", "head") if part in name_stack), outer)


def _inner(values):
    """Jaxprs among an equation's parameters (jit, remat, custom gradients)."""
    for value in values:
        if hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
            yield value


def _dot(eqn):
    (contract, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contract)


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
    slots = [jax.ShapeDtypeStruct((8,), dtype) for dtype in (jnp.int32, jnp.float32) for _ in range(3)]
    batch = PreferenceBatch(Rows(*[jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)] * 5), *slots)
    value = lambda p, b: step.loss(p, b, jnp.float32(1), settings)[0]  # noqa: E731
    jaxpr = jax.make_jaxpr(jax.grad(value) if backward else value)(params, batch)
    rows = ROWS if not sizes else 1
    return jaxpr_flops(jaxpr, head_trips=rows * LENGTH / CHUNK, visited=TILES)


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
        first = attention_module._first_blocks(jnp.asarray(ids).reshape(-1, tile))
        assert (
            flops.visited_pairs(segments, length, tile) == int((jnp.arange(length // tile) - first + 1).sum()) * tile**2
        )
        causal = length // tile * (length // tile + 1) // 2
        assert flops.visited_pairs(segments, length, tile, skips=False) == causal * tile**2


def test_a_row_that_is_no_multiple_of_the_tile_is_padded():
    assert flops.visited_pairs([100], 200, 128) == 2 * 128**2
    assert flops.visited_pairs([200], 200, 128) == 3 * 128**2


@pytest.mark.parametrize("size", ["0.5b", "1.5b", "3b", "7b", "14b"])
def test_a_shipped_micro_step_computes_what_its_remat_policy_needs_and_attention_the_rest(size):
    """Traced as for the TPU, at 16k rows, with the kernel's grid; nothing is compiled."""
    made = cogpo_tpu.get_config(size)
    mesh = make_mesh({"fsdp": -1}, jax.devices())
    micro = programs.programs(made, mesh)[0]
    model = check._flops(micro, made, programs.student_of(made))
    chunks = micro.tokens // row_shards(mesh) / made.logits_chunk
    tiles = made.rows.length // 256  # of the splash kernel, a side
    jaxpr = micro.function.trace(*micro.arguments).jaxpr
    counted = jaxpr_flops(jaxpr, head_trips=chunks, visited=(tiles + 1) / (2 * tiles))
    assert 0.999 < (counted.layers + counted.head) / (model.layers + model.head) <= 1.05
    # A row of one segment visits 65 of 64 half-diagonals of tiles; the backward pass is two kernels: 7 products, not 5.
    assert counted.attention / model.attention == pytest.approx(65 / 64 * 11 / 9, rel=1e-3)
