"""The student's logits are transformers' (float32: max abs diff <= 2e-4), and a test fails where they are not."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogpo_jax.student import model as student_model
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, graphdef_of
from cogpo_jax.student.weights import from_hf

torch = pytest.importorskip("torch")
TOLERANCE = 2e-4
LENGTH = 150  # more than one block of attention

CASES = {
    "qwen2.5 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2.5 untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
    "qwen3 untied": ("qwen3", {"tie_word_embeddings": False, "head_dim": 32}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True, "head_dim": 16}),
    "gqa 4, head_dim 64": ("qwen2", {"head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 2}),
    "gqa 8, head_dim 128": ("qwen3", {"head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 1}),
    "gqa 7, as in 0.5B and 7B": ("qwen2", {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1}),
    "theta 1e6, eps 1e-5": ("qwen2", {"rope_theta": 1e6, "rms_norm_eps": 1e-5}),
    "llama tied, rope of 3.1": (
        "llama",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama untied, all biases": ("llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-5}),
    "yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
}


@functools.partial(jax.jit, static_argnums=(0, 5))
def _logits(
    config: StudentConfig, params: Any, tokens: Any, segment_ids: Any, positions: Any, options: ForwardOptions
) -> jax.Array:
    student = nnx.merge(graphdef_of(config), params)
    return student.logits(student(tokens, segment_ids, positions, options))


def logits(
    config: StudentConfig, params: Any, tokens: np.ndarray, segment_ids: Any = None, positions: Any = None, **o: Any
) -> np.ndarray:
    segment_ids = np.ones_like(tokens) if segment_ids is None else segment_ids
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
    return np.asarray(_logits(config, params, tokens, segment_ids, positions, ForwardOptions(**o)))


def transformers_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def random_tokens(shape: tuple[int, int] = (2, LENGTH), vocab: int = 131) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, shape)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_transformers(case: str, hf_folder: Callable[..., tuple[Any, Path]]) -> None:
    model_type, overrides = CASES[case]
    model, folder = hf_folder(model_type, **overrides)
    config, _, params = from_hf(folder)
    tokens = random_tokens()
    assert np.abs(logits(config, params, tokens) - transformers_logits(model, tokens)).max() <= TOLERANCE


@pytest.fixture
def qwen3(hf_folder: Callable[..., tuple[Any, Path]]) -> tuple[StudentConfig, Any, np.ndarray, np.ndarray]:
    model, folder = hf_folder("qwen3", head_dim=16, tie_word_embeddings=False)
    config, _, params = from_hf(folder)
    tokens = random_tokens()
    return config, params, tokens, transformers_logits(model, tokens)


def test_another_rope_theta_is_seen(qwen3: tuple) -> None:
    config, params, tokens, expected = qwen3
    other = dataclasses.replace(config, rope_theta=config.rope_theta * 1.01)
    assert np.abs(logits(other, params, tokens) - expected).max() > TOLERANCE


def test_qk_norm_after_rope_is_seen(qwen3: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    config, params, tokens, expected = qwen3

    def norm_after_rope(self: Any, x: jax.Array, rope: Any, mesh: Any) -> Any:
        q, k, v = (p(x).reshape(*x.shape[:2], -1, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = student_model.apply_rope(q, *rope), student_model.apply_rope(k, *rope)
        return self.q_norm(q), self.k_norm(k), v

    monkeypatch.setattr(student_model.SelfAttention, "qkv", norm_after_rope)
    _logits.clear_cache()  # the same static arguments: the compiled right one would be used
    wrong = logits(config, params, tokens)
    _logits.clear_cache()
    assert np.abs(wrong - expected).max() > TOLERANCE


def test_a_head_tied_by_mistake_is_seen(qwen3: tuple) -> None:
    config, params, tokens, expected = qwen3
    tied = dataclasses.replace(config, tie_word_embeddings=True)
    params = {name: value for name, value in params.items() if name != "lm_head"}
    assert np.abs(logits(tied, params, tokens) - expected).max() > TOLERANCE


def test_bfloat16_stays_near(qwen3: tuple, record_property: Callable[[str, object], None]) -> None:
    config, params, tokens, expected = qwen3
    difference = np.abs(logits(config, params, tokens, compute_dtype="bfloat16") - expected)
    record_property("max_abs_logit_difference_bfloat16", float(difference.max()))
    # bfloat16 keeps 8 bits: a few steps of 2^-8 of the largest logit, and not zero (it must have been used)
    assert 1e-4 < difference.max() < 24 * 2**-8 * np.abs(expected).max()


def test_remat_changes_no_gradient(qwen3: tuple) -> None:
    config, params, tokens, _ = qwen3
    tokens = tokens[:, :40]

    def gradient(policy: str) -> list[jax.Array]:
        def loss(params: Any) -> jax.Array:
            student = nnx.merge(graphdef_of(config), params)
            ones = jnp.ones_like(tokens)
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            return jnp.sum(jnp.sin(student(jnp.asarray(tokens), ones, positions, ForwardOptions(remat=policy))))

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    expected = gradient("none")
    for policy in ("dots", "full", "offload"):
        for a, b in zip(gradient(policy), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


def test_a_packed_segment_has_the_logits_it_has_alone(qwen3: tuple) -> None:
    config, params, _, _ = qwen3
    lengths, width = [37, 150, 5, 90], 300
    row = random_tokens((1, width))
    segment_ids, positions, start = np.zeros((2, 1, width), np.int32), np.zeros((1, width), np.int32), 0
    packed_ids, alone_ids = segment_ids
    for i, length in enumerate(lengths):
        here = slice(start, start + length)
        packed_ids[0, here], positions[0, here] = i + 1, np.arange(length)
        start += length
    packed = logits(config, params, row, packed_ids, positions)
    for i, length in enumerate(lengths):
        here = packed_ids[0] == i + 1
        alone, alone_ids[:] = np.zeros_like(row), 0
        alone[0, :length], alone_ids[0, :length] = row[0, here], 1
        expected = logits(config, params, alone, alone_ids)[0, :length]
        np.testing.assert_allclose(packed[0, here], expected, atol=TOLERANCE / 2)
    assert np.isfinite(packed).all()


def test_a_sharded_student_is_the_same(qwen3: tuple, tmp_path: Path) -> None:
    from cogpo_jax.sharding import make_mesh

    config, _, tokens, expected = qwen3
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, _, params = from_hf(tmp_path / "hf", mesh)
    assert not params["layers"]["mlp"]["up_proj"]["weight"].sharding.is_fully_replicated
    rows = np.concatenate([tokens, tokens])
    sharded = logits(config, params, rows, mesh=mesh)
    np.testing.assert_allclose(sharded[:2], expected, atol=TOLERANCE)
