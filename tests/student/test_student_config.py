"""A config.json is understood exactly as transformers understands it, or refused by the field's name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.layers import inverse_frequencies

CONFIGS = sorted((Path(__file__).parent.parent / "data" / "model_configs").glob("*.json"))
GOOD: dict[str, Any] = json.loads(CONFIGS[0].read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_real_config_survives_the_round_trip(path: Path) -> None:
    config = StudentConfig.from_hf(path)
    original, back = json.loads(path.read_text()), config.to_hf()
    assert {k: back[k] for k in original if k != "torch_dtype"} == {
        k: v for k, v in original.items() if k != "torch_dtype"
    }
    assert StudentConfig.from_hf(back) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_transformers_reads_the_same_architecture(path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = StudentConfig.from_hf(path)
    for written in (json.loads(path.read_text()), config.to_hf()):
        theirs = transformers.AutoConfig.for_model(**written)
        again = StudentConfig.from_hf(theirs.to_dict())  # transformers 5 writes rope_parameters and layer_types
        assert again == config


def test_qwen3_heads_are_128_wide_whatever_the_hidden_size() -> None:
    config = StudentConfig.from_hf({k: v for k, v in GOOD.items() if k != "head_dim"} | {"model_type": "qwen3"})
    assert config.head_dim == 128


@pytest.mark.parametrize(
    "yarn",
    [
        {},
        {"beta_fast": 16, "beta_slow": 2},
        {"attention_factor": 1.25},
        {"mscale": 0.7, "mscale_all_dim": 1.0},
        {"truncate": False},
    ],
)
def test_yarn_frequencies_are_transformers(yarn: dict[str, Any]) -> None:
    modeling = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6} | yarn
    theirs = transformers.Qwen2Config(
        hidden_size=512,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_hidden_layers=1,
        max_position_embeddings=131072,
        rope_parameters=rope,
    )
    expected, factor = modeling.ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    config = StudentConfig.from_hf(theirs.to_dict())
    frequencies, our_factor = inverse_frequencies(config)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=3e-7)
    assert our_factor == pytest.approx(factor)
    assert StudentConfig.from_hf(config.to_hf()) == config


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA = {  # Llama 3.2 1B
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": dict(LLAMA3),  # transformers writes into what it is given
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}


def test_llama3_frequencies_are_transformers() -> None:
    modeling = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(**LLAMA)
    expected, factor = modeling.ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    config = StudentConfig.from_hf(LLAMA)
    frequencies, our_factor = inverse_frequencies(config)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6)
    assert our_factor == factor
    for again in (theirs.to_dict(), config.to_hf(), transformers.AutoConfig.for_model(**config.to_hf()).to_dict()):
        assert StudentConfig.from_hf(again) == config


def test_a_llama_without_key_heads_or_positions_has_transformers_defaults() -> None:
    fields = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "max_position_embeddings")}
    config = StudentConfig.from_hf(fields | {"rope_scaling": None, "mlp_bias": True, "attention_bias": True})
    assert (config.num_key_value_heads, config.max_position_embeddings) == (32, 2048)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, True)


def test_what_other_engines_read_in_rope_scaling_is_carried() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "attn_factor": 0.8}
    written = StudentConfig.from_hf(GOOD | {"rope_scaling": rope}).to_hf()
    assert written["rope_scaling"]["attn_factor"] == 0.8
    assert written["rope_scaling"]["factor"] == 4.0


def test_rope_parameters_by_layer_type_are_read_or_refused_never_passed_over() -> None:
    plain = {k: v for k, v in GOOD.items() if k not in ("rope_theta", "rope_scaling")}
    one = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
    assert StudentConfig.from_hf(plain | {"rope_parameters": one}).rope_theta == 5e5
    for bad in (one | {"sliding_attention": {"rope_theta": 1e4}}, {"other": {"rope_theta": 1e4}}, [1]):
        with pytest.raises(UserError, match="rope_parameters"):
            StudentConfig.from_hf(plain | {"rope_parameters": bad})
    with pytest.raises(UserError, match="rope_theta"):
        StudentConfig.from_hf(plain | {"rope_parameters": {"rope_type": "default"}})


def test_plain_frequencies_are_transformers() -> None:
    torch = pytest.importorskip("torch")
    config = StudentConfig.from_hf(GOOD)
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    expected = 1.0 / (config.rope_theta**exponents)
    np.testing.assert_allclose(inverse_frequencies(config)[0], expected.numpy(), rtol=2e-7)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mistral"}, "model_type: 'mistral'"),
        ({"model_type": "qwen3_moe"}, "model_type: 'qwen3_moe'"),
        ({"hidden_size": None}, "hidden_size: None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3"),
        ({"head_dim": 63}, "head_dim: 63"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout: 0.1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: gptq"),
        ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 12}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention"] * 48}, "layer_types"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: 'linear'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling: 'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "rope_scaling.factor: 0.5"),
        ({"rope_theta": "big"}, "rope_theta: 'big'"),
        ({"rope_theta": None}, "rope_theta: None"),
        ({"rms_norm_eps": None}, "rms_norm_eps: None"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: 'small'"),
        ({"max_position_embeddings": None}, "max_position_embeddings: None"),
        ({"initializer_range": None}, "initializer_range: None"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings: None"),
        ({"hidden_act": None}, "hidden_act: None"),
        ({"rope_scaling": "yarn"}, "rope_scaling: 'yarn'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": "x"}}, "beta_fast: 'x'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor: None"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor 4.0"),
        ({"layer_types": 7}, "layer_types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ({"rope_scaling": {"rope_type": None, "type": "linear"}}, "rope_scaling: 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "type": "linear"}}, "rope_type 'yarn' and type 'linear'"),
        ({"rope_parameters": {"rope_theta": 2e6, "rope_type": "default"}, "rope_theta": 1e6}, "rope_theta: 1000000.0"),
        (
            {"rope_parameters": {"rope_theta": 1e6, "factor": 4.0}, "rope_scaling": {"factor": 2.0}},
            "rope_scaling has 2.0",
        ),
        ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 4096}, "original_max_position_embeddings: 4096"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": "no"}}, "truncate: 'no'"),
        ({"rope_scaling": ""}, "rope_scaling: ''"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        StudentConfig.from_hf(GOOD | fields)
    assert words in str(error.value)


def test_positions_before_stretching_may_stand_beside_the_fields_of_rope() -> None:
    yarn = {"rope_type": "yarn", "factor": 2.0}
    config = StudentConfig.from_hf(GOOD | {"rope_scaling": yarn, "original_max_position_embeddings": 4096})
    assert config.yarn is not None
    assert config.yarn.original_max_position_embeddings == 4096


def test_a_window_that_no_layer_slides_is_no_window() -> None:
    fields = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": GOOD["num_hidden_layers"]}
    assert StudentConfig.from_hf(GOOD | fields) == StudentConfig.from_hf(GOOD)


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        StudentConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable"):
        StudentConfig.from_hf(tmp_path)
