"""What a dense Qwen2, Qwen2.5, Qwen3 or Llama checkpoint is, read from its config.json alone (no jax)."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.student.hf_files import hub_hint, read_json

_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
MODEL_TYPES = tuple(_ARCHITECTURES)
_POSITIONS = {"llama": 2048}  # transformers' max_position_embeddings where config.json has none; else 32,768
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
    "mlp_bias",
    "max_position_embeddings",
    "initializer_range",
)


# Each parameter by path, and the logical axis (`cogpo_jax.sharding.RULES`) of each of its dimensions.
LOGICAL_AXES: dict[str, tuple[str | None, ...]] = {
    "embed_tokens.weight": ("vocab", "embed"),
    "layers.input_layernorm.weight": ("layers", "norm"),
    "layers.self_attn.q_proj.weight": ("layers", "heads", "embed"),
    "layers.self_attn.q_proj.bias": ("layers", "heads"),
    "layers.self_attn.k_proj.weight": ("layers", "kv_heads", "embed"),
    "layers.self_attn.k_proj.bias": ("layers", "kv_heads"),
    "layers.self_attn.v_proj.weight": ("layers", "kv_heads", "embed"),
    "layers.self_attn.v_proj.bias": ("layers", "kv_heads"),
    "layers.self_attn.o_proj.weight": ("layers", "embed", "heads"),
    "layers.self_attn.o_proj.bias": ("layers", "norm"),
    "layers.self_attn.q_norm.weight": ("layers", "norm"),
    "layers.self_attn.k_norm.weight": ("layers", "norm"),
    "layers.post_attention_layernorm.weight": ("layers", "norm"),
    "layers.mlp.gate_proj.weight": ("layers", "mlp", "embed"),
    "layers.mlp.gate_proj.bias": ("layers", "mlp"),
    "layers.mlp.up_proj.weight": ("layers", "mlp", "embed"),
    "layers.mlp.up_proj.bias": ("layers", "mlp"),
    "layers.mlp.down_proj.weight": ("layers", "embed", "mlp"),
    "layers.mlp.down_proj.bias": ("layers", "norm"),
    "norm.weight": ("norm",),
    "lm_head.weight": ("vocab", "embed"),
}


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
class Llama3Rope:
    """Llama 3.1's stretching of RoPE: long wavelengths divided by the factor, short ones kept, a ramp between.

    Source: transformers' `rope_type: llama3` (Llama 3.1's reference code).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """The architecture: hashable plain data, equal to what transformers would build from the same config.json."""

    model_type: str  # qwen2 (also Qwen2.5 and R1-Distill-Qwen), qwen3 or llama (also SmolLM2 and R1-Distill-Llama)
    vocab_size: int  # rows of the embedding; may be padded beyond the tokenizer
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    yarn: Yarn | None = None
    llama3: Llama3Rope | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qkv_bias: bool = True
    o_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 32_768
    initializer_range: float = 0.02
    carried: str = dataclasses.field(default="{}", compare=False)  # JSON of the config.json fields we don't interpret
    carried_rope: str = dataclasses.field(default="{}", compare=False)  # and of the fields inside rope_scaling

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
        if config.get("num_key_value_heads") is None and "num_attention_heads" in config:  # as transformers
            config["num_key_value_heads"] = config["num_attention_heads"]
        for field in _REQUIRED:
            if not _is_positive_int(config.get(field)):
                raise UserError(f"{where}: {field}: {config.get(field)!r}: must be a positive integer")
        _refuse_variants(config, where)
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        if heads % kv_heads:
            raise UserError(f"{where}: num_key_value_heads: {kv_heads}: must divide num_attention_heads ({heads})")
        bias = _flag(config, where, "attention_bias")
        default = _POSITIONS.get(model_type, 32_768)
        positions = _whole_number(config, where, "max_position_embeddings", default)
        return cls(
            model_type=model_type,
            **{field: config[field] for field in _REQUIRED},
            head_dim=_head_dim(config, where),
            **_rope(config, where),
            rms_norm_eps=_number(config, where, "rms_norm_eps", 1e-6),
            tie_word_embeddings=_flag(config, where, "tie_word_embeddings"),
            qkv_bias=True if model_type == "qwen2" else bias,
            o_bias=False if model_type == "qwen2" else bias,
            mlp_bias=_flag(config, where, "mlp_bias") if model_type == "llama" else False,
            max_position_embeddings=positions,
            initializer_range=_number(config, where, "initializer_range", 0.02),
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
        if self.model_type != "qwen2":
            config["attention_bias"] = self.qkv_bias
        if self.model_type == "llama":
            config["mlp_bias"] = self.mlp_bias
        return config

    def _rope_scaling(self) -> dict[str, Any] | None:
        carried, scaling = json.loads(self.carried_rope), self.yarn or self.llama3
        if scaling is None:
            return {"rope_type": "default", **carried} if carried else None
        fields = {k: v for k, v in dataclasses.asdict(scaling).items() if v is not None}
        return {"rope_type": "yarn" if self.yarn else "llama3", **fields, **carried}


def _load(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    if isinstance(source, Mapping):
        return dict(source), "model config"
    path: Any = Path(source) if isinstance(source, str) else source  # a path of etils may be gs://
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise UserError(f"{path}: an adapter without its base model: merge it first (peft: merge_and_unload)")
        path = path / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; a Hugging Face folder holds its config.json{hub_hint(source)}")
    return read_json(path), str(path)


def _number(values: Mapping[str, Any], where: str, field: str, default: float | None) -> float:
    """A finite number above 0. Raises UserError for anything else, null too: transformers would compute with it."""
    value = values.get(field, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UserError(f"{where}: {field}: {value!r}: must be a number above 0")
    return float(value)


def _whole_number(values: Mapping[str, Any], where: str, field: str, default: int | None) -> int:
    value: Any = values.get(field, default)
    if not _is_positive_int(value):
        raise UserError(f"{where}: {field}: {value!r}: must be a positive integer")
    return int(value)


def _flag(config: Mapping[str, Any], where: str, field: str, *, default: bool = False) -> bool:
    value = config.get(field, default)
    if not isinstance(value, bool):
        raise UserError(f"{where}: {field}: {value!r}: must be true or false")
    return value


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
    if kinds is not None and kinds != ["full_attention"] * layers:
        raise UserError(f"{where}: layer_types: must be {layers} times 'full_attention' (no sliding window here)")
    slides = config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None
    first = config.get("max_window_layers", 28)
    if slides and kinds is None and not (_is_positive_int(first) and first >= layers):
        raise UserError(
            f"{where}: use_sliding_window: true from layer {first} on: "
            "sliding-window attention is not implemented; must be false"
        )


_ROPE_READ = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def _rope(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The config's fields of RoPE, from transformers 4's two fields or transformers 5's `rope_parameters`."""
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        part = config.get(name)
        part = {} if part is None else part
        if isinstance(part, dict) and set(part) == {"full_attention"}:  # by layer type, and there is only one
            part = part["full_attention"]
        if not isinstance(part, dict) or any(isinstance(value, dict) for value in part.values()):
            raise UserError(f"{where}: {name}: {part!r}: must be one set of fields for all layers")
        for field, value in part.items():
            if rope.setdefault(field, value) != value:
                raise UserError(f"{where}: {name}.{field}: {value!r}: rope_scaling has {rope[field]!r}")
    if config.get("rope_parameters") and "rope_theta" not in rope and "rope_theta" not in config:
        raise UserError(f"{where}: rope_parameters: has no rope_theta; it must be there, or beside it")
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))  # transformers' default
    if config.get("rope_theta", theta) != theta:
        raise UserError(f"{where}: rope_theta: {config['rope_theta']!r}: inside rope_parameters it is {theta!r}")
    if not isinstance(theta, (int, float)) or isinstance(theta, bool) or not 1 < theta < math.inf:
        raise UserError(f"{where}: rope_theta: {theta!r}: must be a number above 1")
    for partial in (rope.get("partial_rotary_factor"), config.get("partial_rotary_factor")):
        if partial not in (None, 1.0):
            raise UserError(f"{where}: partial_rotary_factor: {partial}: must be 1.0")
    kinds = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
    kind = kinds[0] if kinds else "default"
    if kinds[1:] and kinds[1] != kind:
        raise UserError(f"{where}: rope_scaling: rope_type {kind!r} and type {kinds[1]!r}: must be the same")
    original, inside = (values.get("original_max_position_embeddings") for values in (config, rope))
    if kind != "default" and original is not None:  # transformers reads it beside them too
        rope["original_max_position_embeddings"] = original
        if inside not in (None, original):
            raise UserError(f"{where}: original_max_position_embeddings: {original!r}: rope_scaling has {inside!r}")
    scaling: Yarn | Llama3Rope | None = None
    if kind == "yarn":
        scaling = _yarn(rope, where, config.get("max_position_embeddings"))
    elif kind == "llama3":
        scaling = _llama3(rope, where)
    elif kind != "default":
        raise UserError(f"{where}: rope_scaling: {kind!r}: known are default, yarn and llama3")
    read = {*_ROPE_READ, *(field.name for field in (dataclasses.fields(scaling) if scaling else ()))}
    carried = {k: v for k, v in rope.items() if k not in read}  # transformers passes over them, other engines may not
    return {
        "rope_theta": float(theta),
        "yarn": scaling if kind == "yarn" else None,
        "llama3": scaling if kind == "llama3" else None,
        "carried_rope": json.dumps(carried, sort_keys=True),
    }


def _yarn(rope: dict[str, Any], where: str, positions: int | None) -> Yarn:
    given = {k: v for k, v in rope.items() if v is not None}  # null: the default
    where = f"{where}: rope_scaling"
    original = _whole_number(given, where, "original_max_position_embeddings", positions)
    factor = _number(given, where, "factor", (positions or 0) / original)
    if factor < 1:
        raise UserError(f"{where}.factor: {factor!r}: yarn needs a number of at least 1")
    optional = ("attention_factor", "mscale", "mscale_all_dim")
    return Yarn(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=_number(given, where, "beta_fast", 32.0),
        beta_slow=_number(given, where, "beta_slow", 1.0),
        **{field: _number(given, where, field, None) if field in given else None for field in optional},
        truncate=_flag(given, where, "truncate", default=True),
    )


def _llama3(rope: dict[str, Any], where: str) -> Llama3Rope:
    where = f"{where}: rope_scaling"
    factor, low, high = (_number(rope, where, k, None) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    if factor < 1 or not low < high:
        raise UserError(f"{where}: factor {factor}: at least 1; low_freq_factor {low}: below high_freq_factor {high}")
    original = _whole_number(rope, where, "original_max_position_embeddings", None)
    return Llama3Rope(factor, low, high, original)
