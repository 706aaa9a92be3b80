"""What a dense Qwen2 / Qwen2.5 / Qwen3 checkpoint is, read from its config.json alone (no jax)."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError

MODEL_TYPES = ("qwen2", "qwen3")
_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
# Fields that change what the model computes and that we read; everything else is carried through untouched.
_READ = (
    *_REQUIRED,
    "model_type",
    "architectures",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "max_position_embeddings",
    "initializer_range",
)


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN's static stretching of RoPE (arXiv 2309.00071), with transformers' defaults."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """The architecture: hashable plain data, equal to what transformers would build from the same config.json."""

    model_type: str  # qwen2 (also Qwen2.5 and R1-Distill-Qwen) or qwen3
    vocab_size: int  # rows of the embedding; may be padded beyond the tokenizer
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    yarn: Yarn | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qkv_bias: bool = True
    o_bias: bool = False
    max_position_embeddings: int = 32_768
    initializer_range: float = 0.02
    carried: str = dataclasses.field(default="{}", compare=False)  # JSON of the config.json fields we don't interpret

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are RMS-normalised per head before RoPE (Qwen3)."""
        return self.model_type == "qwen3"

    @classmethod
    def from_hf(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> "StudentConfig":
        """Reads a config.json (a dict, its path, or the folder that holds it).

        Raises UserError, naming the field, for anything that this model would not compute exactly.
        """
        config, where = _load(source)
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            raise UserError(f"{where}: model_type: {model_type!r}: known are {', '.join(MODEL_TYPES)} (dense)")
        for field in _REQUIRED:
            if not _is_positive_int(config.get(field)):
                raise UserError(f"{where}: {field}: {config.get(field)!r}: must be a positive integer")
        _refuse_variants(config, where)
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        if heads % kv_heads:
            raise UserError(f"{where}: num_key_value_heads: {kv_heads}: must divide num_attention_heads ({heads})")
        rope_theta, yarn = _rope(config, where)
        bias = bool(config.get("attention_bias", False))
        return cls(
            model_type=model_type,
            **{field: config[field] for field in _REQUIRED},
            head_dim=_head_dim(config, where),
            rope_theta=rope_theta,
            yarn=yarn,
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=True if model_type == "qwen2" else bias,
            o_bias=False if model_type == "qwen2" else bias,
            max_position_embeddings=int(config.get("max_position_embeddings", 32_768)),
            initializer_range=float(config.get("initializer_range", 0.02)),
            carried=json.dumps({k: v for k, v in config.items() if k not in _READ}, sort_keys=True),
        )

    def to_hf(self) -> dict[str, Any]:
        """The dict of a config.json that `from_hf` (and transformers 4 and 5) reads back as this config."""
        config = {
            **json.loads(self.carried),
            "architectures": [_ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            **{field: getattr(self, field) for field in _REQUIRED},
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self._rope_scaling(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "initializer_range": self.initializer_range,
        }
        if self.model_type == "qwen3":
            config["attention_bias"] = self.qkv_bias
        return config

    def _rope_scaling(self) -> dict[str, Any] | None:
        if self.yarn is None:
            return None
        fields = {k: v for k, v in dataclasses.asdict(self.yarn).items() if v is not None}
        return {"rope_type": "yarn", **fields}


def _load(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    if isinstance(source, Mapping):
        return dict(source), "model config"
    path: Any = Path(source) if isinstance(source, str) else source  # a path of etils may be gs://
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a Hugging Face folder holds its config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: must be a JSON object")
    return config, str(path)


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _head_dim(config: dict[str, Any], where: str) -> int:
    # transformers: Qwen3Config defaults to 128 whatever the hidden size; Qwen2 divides.
    derived = 128 if config["model_type"] == "qwen3" else config["hidden_size"] // config["num_attention_heads"]
    head_dim = config.get("head_dim")
    head_dim = derived if head_dim is None else head_dim
    if not _is_positive_int(head_dim) or head_dim % 2:
        raise UserError(f"{where}: head_dim: {head_dim!r}: must be a positive even integer")
    return head_dim


def _refuse_variants(config: dict[str, Any], where: str) -> None:
    """Refuses by name what would silently compute something else."""
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", "?") if isinstance(method, dict) else method
        raise UserError(f"{where}: quantization_config: {method}: quantised weights are not read; give the full ones")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act: {config['hidden_act']!r}: must be 'silu'")
    if config.get("attention_dropout"):
        raise UserError(f"{where}: attention_dropout: {config['attention_dropout']}: must be 0 (no dropout here)")
    layers = config["num_hidden_layers"]
    kinds = config.get("layer_types")
    if kinds is not None and (set(kinds) != {"full_attention"} or len(kinds) != layers):
        raise UserError(f"{where}: layer_types: must be {layers} times 'full_attention' (no sliding window here)")
    slides = config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None
    if slides and kinds is None and config.get("max_window_layers", 28) < layers:
        raise UserError(
            f"{where}: use_sliding_window: true from layer {config.get('max_window_layers', 28)} on: "
            "sliding-window attention is not implemented; must be false"
        )


def _rope(config: dict[str, Any], where: str) -> tuple[float, Yarn | None]:
    """rope_theta and YaRN, from transformers 4's two fields or transformers 5's `rope_parameters`."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    if not isinstance(theta, (int, float)) or isinstance(theta, bool) or theta <= 1:
        raise UserError(f"{where}: rope_theta: {theta!r}: must be a number above 1")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor: {rope['partial_rotary_factor']}: must be 1.0")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", None):
        return float(theta), None
    if kind != "yarn":
        raise UserError(f"{where}: rope_scaling: {kind!r}: known are default and yarn")
    original = rope.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    factor = rope.get("factor") or (config.get("max_position_embeddings", 0) / original if original else 0)
    if not original or not isinstance(factor, (int, float)) or factor < 1:
        raise UserError(f"{where}: rope_scaling.factor: {factor!r}: yarn needs a number of at least 1")
    return float(theta), Yarn(
        factor=float(factor),
        original_max_position_embeddings=int(original),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        attention_factor=rope.get("attention_factor"),
        mscale=rope.get("mscale"),
        mscale_all_dim=rope.get("mscale_all_dim"),
        truncate=bool(rope.get("truncate", True)),
    )
