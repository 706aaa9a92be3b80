"""Tiny students with random weights, made by transformers and written as real Hugging Face folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY = {
    "vocab_size": 132,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 10_000.0,
    "bos_token_id": None,
    "eos_token_id": 2,
}


def make_hf_model(model_type: str, **overrides: Any) -> Any:
    """A transformers model whose every parameter is random: unit norms and zero biases would hide mistakes."""
    torch = pytest.importorskip("torch")
    import transformers

    classes = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }
    config_class, model_class = classes[model_type]
    model = model_class(config_class(**{**TINY, **overrides})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            p.copy_(centre + 0.15 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def hf_model() -> Callable[..., Any]:
    return make_hf_model


@pytest.fixture
def hf_folder(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """(transformers model, the folder it was saved to); `shard` in bytes splits it."""

    def make(model_type: str, shard: str = "5GB", **overrides: Any) -> tuple[Any, Path]:
        model = make_hf_model(model_type, **overrides)
        folder = tmp_path / "hf"
        model.save_pretrained(folder, max_shard_size=shard)
        return model, folder

    return make
