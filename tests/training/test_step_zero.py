"""Step 0 of CogPO: the loss is ln 2 and every margin exactly 0, for any reference mode, student and remat policy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cogpo_jax.data.batches import PreferenceBatch, Rows
from cogpo_jax.objective.cogpo import PreferenceOptions
from cogpo_jax.sharding import make_mesh, param_shardings
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, init_params
from cogpo_jax.training import step


@pytest.mark.parametrize("reference", ["cached", "live"])
@pytest.mark.parametrize(
    ("student", "remat", "per_device"),
    [("qwen2", "none", 4), ("qwen2", "full", 16), ("qwen3", "none", 4)],
)
def test_step_zero_has_loss_ln_2_and_margins_of_exactly_zero(
    tmp_path, run, models, student, remat, per_device, reference
):
    _, metrics = run(
        tmp_path,
        model=models[student],
        remat=remat,
        reference=reference,
        max_steps=1,
        **{"rows.per_device": per_device, "beta.small": 0.07, "beta.large": 1.7},
    )
    first = metrics[0]
    assert (first["micro_batches"] == 1) == (per_device == 16)
    assert abs(first["loss"] - math.log(2)) < 1e-6
    assert first["pairs"] == 18
    for name in ("margin", "chosen_logratio", "rejected_logratio", "kl"):
        assert set(first[name]) == {"small", "medium", "large", "all"}
        assert all(value == 0 for value in first[name].values()), first[name]


# Wide and long enough that XLA's CPU back end fuses the gradient program unlike the reference program.
WIDE = StudentConfig.from_hf(
    {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
)
ROWS, LENGTH, SEGMENTS = 2, 2048, 5


def packed_rows(rng):
    """Each row holds five responses of random lengths behind prompts of 40 tokens, and some padding."""
    segment_ids, positions = np.zeros((2, ROWS, LENGTH), np.int32)
    slots = np.full((ROWS, LENGTH), -1, np.int32)
    for row in range(ROWS):
        ends = np.sort(rng.choice(np.arange(1, 30), SEGMENTS, replace=False)) * 67
        for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            segment_ids[row, start:end] = i + 1
            positions[row, start:end] = np.arange(end - start)
            slots[row, start + 40 : end] = row * SEGMENTS + i
    tokens, targets = rng.integers(0, WIDE.vocab_size, (2, ROWS, LENGTH), np.int32)
    return Rows(tokens, targets, segment_ids, positions, slots)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_wide_student_in_long_rows_starts_at_ln_2_too(remat):
    """The reference program and the gradient program agree to the last bit in float32, however XLA fuses them."""
    responses, mesh = ROWS * SEGMENTS, make_mesh({}, jax.devices()[:1])
    settings = step.StepSettings(
        WIDE, ForwardOptions(remat=remat, mesh=mesh), "cogpo", PreferenceOptions(), 512, responses
    )
    params, optimizer = init_params(WIDE, 0), optax.sgd(0.0)
    programs = step.make_programs(settings, optimizer, params, optimizer.init(params))
    params = jax.device_put(params, param_shardings(mesh, params))
    rng = np.random.default_rng(0)
    rows = jax.tree.map(jnp.asarray, packed_rows(rng))
    reference, counts = programs.score(params, rows)
    assert (np.asarray(counts) > 20).all()
    chosen, rejected = rng.permutation(responses).reshape(2, -1)
    batch = PreferenceBatch(
        rows=rows,
        chosen=jnp.asarray(chosen, jnp.int32),
        rejected=jnp.asarray(rejected, jnp.int32),
        gap=jnp.asarray([0, 1, 2, 3, 0], jnp.int32),
        beta=jnp.asarray([0.07, 0.2, 1.7, 0.1, 0.1], jnp.float32),
        weight=jnp.asarray([1, 2, 1, 1, 1], jnp.float32),
        reference_logps=reference,
    )
    _, sums = programs.accumulate(params, *programs.start(params), batch, jnp.float32(6))
    assert float(sums["objective"]["all"][0]) / 6 == pytest.approx(math.log(2), abs=1e-7)
    for name in ("margin", "chosen_logratio", "rejected_logratio", "kl"):
        assert float(sums[name]["all"][0]) == 0, name
