"""Eight devices in any arrangement train what one device trains."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cogpo_jax import sharding
from cogpo_jax.data.batches import PreferenceBatch, Rows, SftBatch
from cogpo_jax.objective.cogpo import PreferenceOptions
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, init_params
from cogpo_jax.training import step

STUDENT = StudentConfig.from_hf(
    {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
)
ROWS, LENGTH, SLOTS = 8, 24, 16


def micro_batch(seed):
    """Two segments a row, each a response; pairs that join responses of different rows."""
    rng = np.random.default_rng(seed)
    shape = (ROWS, LENGTH)
    segment_ids = np.tile(np.repeat([1, 2, 0], [10, 12, 2]), (ROWS, 1))
    slots = np.where(segment_ids > 0, 2 * np.arange(ROWS)[:, None] + segment_ids - 1, -1)
    slots[:, [0, 1, 2, 10, 11]] = -1  # prompts
    slots[3] = -1  # a row in which nothing counts
    batch = {
        "tokens": rng.integers(0, 64, shape),
        "targets": rng.integers(0, 64, shape),
        "segment_ids": segment_ids,
        "positions": np.tile(np.r_[np.arange(10), np.arange(12), 0, 0], (ROWS, 1)),
        "slots": slots,
        "chosen": np.array([0, 3, 15, 8, 0]),
        "rejected": np.array([13, 2, 5, 9, 0]),
        "gap": np.array([0, 1, 2, 3, 3]),
    }
    batch = {k: v.astype(np.int32) for k, v in batch.items()}
    batch["beta"] = np.array([0.1, 0.2, 0.5, 0.1, 0.1], np.float32)
    batch["weight"] = np.array([1, 2, 1, 1, 0], np.float32)
    batch["reference_logps"] = rng.normal(-40, 1, SLOTS).astype(np.float32)
    rows = Rows(*(batch.pop(field.name) for field in dataclasses.fields(Rows)))
    return PreferenceBatch(rows, **batch)


def train(sizes, devices, objective="cogpo"):
    """Two steps of two micro-batches: (parameters, metrics of the last step, gradient norm)."""
    mesh = sharding.make_mesh(sizes, devices)
    sharding.check_divides(mesh, STUDENT)
    settings = step.StepSettings(STUDENT, ForwardOptions(mesh=mesh), objective, PreferenceOptions(), 16, SLOTS)
    optimizer = optax.adamw(1e-3)
    shapes = jax.eval_shape(functools.partial(init_params, STUDENT, 0))
    params = init_params(STUDENT, 0, shardings=sharding.param_shardings(mesh, shapes))
    opt_shapes = jax.eval_shape(optimizer.init, params)
    opt_state = jax.jit(optimizer.init, out_shardings=sharding.param_shardings(mesh, opt_shapes))(params)
    programs = step.make_programs(settings, optimizer, params, opt_state)
    for k in range(2):
        gradients, metrics = programs.start(params)
        for m in range(2):
            batch = micro_batch(10 * k + m)
            rows = jax.device_put(batch.rows, sharding.row_sharding(mesh))
            pairs = jax.device_put(dataclasses.replace(batch, rows=None), sharding.replicated(mesh))
            batch = SftBatch(rows) if objective == "sft" else dataclasses.replace(pairs, rows=rows)
            gradients, metrics = programs.accumulate(params, gradients, metrics, batch, jnp.float32(8))
        params, opt_state, norm = programs.apply(params, opt_state, gradients, jnp.int32(k))
    return jax.device_get((params, metrics, norm))


@functools.cache
def on_one_device(objective):
    return train({}, jax.devices()[:1], objective)


@pytest.mark.parametrize(
    ("sizes", "objective"),
    [
        ({"fsdp": 8}, "cogpo"),
        ({"data": 4, "tensor": 2}, "cogpo"),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "cogpo"),
        ({"replica": 2, "fsdp": 4}, "cogpo"),
        ({"replica": 2, "fsdp": 2, "tensor": 2}, "sft"),
    ],
    ids=str,
)
def test_any_mesh_trains_what_one_device_trains(sizes, objective):
    params, metrics, norm = train(sizes, jax.devices(), objective)
    want_params, want_metrics, want_norm = on_one_device(objective)
    np.testing.assert_allclose(norm, want_norm, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), metrics, want_metrics)
    # AdamW's first steps are the gradient's sign: where a gradient is all rounding, so is the update.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, want_params)
