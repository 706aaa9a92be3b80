"""The student in Flax NNX: HF's parameter names and [out, in] orientation, layers stacked on [L] and scanned.

Parameters travel as a plain nested dict of arrays (`split`, `abstract_params`); `nnx.merge(graphdef, params)` makes the
module again, inside or outside of jit.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from cogpo_jax.errors import UserError
from cogpo_jax.sharding import constrain
from cogpo_jax.student.attention import BACKENDS, attention
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.layers import FEW_TOKENS, Embedding, Linear, RMSNorm, apply_rope, project, rope_tables

REMAT_POLICIES = ("none", "dots", "full", "offload")
COMPUTE_DTYPES = ("float32", "bfloat16")
# Up to so many layers are written out: a loop would copy all that the gradient needs into stacked arrays, which a tiny
# student's step on a CPU feels. The program of so few takes no longer to compile.
FEW_LAYERS = 4


@dataclasses.dataclass(frozen=True)
class ForwardOptions:
    """How a forward pass computes; hashable, so that it can be a static argument of jit."""

    compute_dtype: str = "float32"  # of the matrix products: float32 (exact) or bfloat16 (accumulated in float32)
    attention: str = "xla"  # xla | splash | gpu
    remat: str = "none"  # none | dots | full | offload: what the backward pass keeps of each layer
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        for field, known in (("compute_dtype", COMPUTE_DTYPES), ("attention", BACKENDS), ("remat", REMAT_POLICIES)):
            if getattr(self, field) not in known:
                raise UserError(f"{field}: {getattr(self, field)!r}: known are {', '.join(known)}")


class SelfAttention(nnx.Module):
    """Grouped-query attention; queries and keys are normalised per head where the config says so (Qwen3)."""

    def __init__(self, config: StudentConfig, make: "_Initializer"):
        c, q, kv = config, config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.head_dim, self.kv_heads = c.head_dim, c.num_key_value_heads
        self.q_proj = make.linear(c.hidden_size, q, bias=c.qkv_bias)
        self.k_proj = make.linear(c.hidden_size, kv, bias=c.qkv_bias)
        self.v_proj = make.linear(c.hidden_size, kv, bias=c.qkv_bias)
        self.o_proj = make.linear(q, c.hidden_size, bias=c.o_bias)
        if c.qk_norm:
            self.q_norm = RMSNorm(make.ones(c.head_dim), c.rms_norm_eps)
            self.k_norm = RMSNorm(make.ones(c.head_dim), c.rms_norm_eps)

    def qkv(self, x: Float[Array, "B T D"], rope: tuple[Array, Array], mesh: Mesh | None) -> tuple[Array, Array, Array]:
        """Queries [B, T, H, dh] and keys [B, T, K, dh] after norm and RoPE, and values [B, T, K, dh]."""
        # Decoding: the weights' copy would cost more than it saves.
        few = x.shape[1] == 1 or math.prod(x.shape[:-1]) <= FEW_TOKENS
        q, k, v = self._split(x) if few else self._joint(x, mesh)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        return apply_rope(q, *rope), apply_rope(k, *rope), v

    def _split(self, x: Array) -> list[Array]:
        return [p(x).reshape(*x.shape[:2], -1, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj)]

    def _joint(self, x: Array, mesh: Mesh | None) -> list[Array]:
        """The three as one product: fewer exchanges, and a shorter program.

        The joint weight goes by key head, each with its query heads: `tensor` splits it where it splits the three.
        """

        def join(arrays: Sequence[Array]) -> Array:
            heads = [a.astype(x.dtype).reshape(self.kv_heads, -1, self.head_dim, *a.shape[1:]) for a in arrays]
            return jnp.concatenate(heads, axis=1).reshape(-1, *arrays[0].shape[1:])

        projections = self.q_proj, self.k_proj, self.v_proj
        weight = constrain(join([p.weight[...] for p in projections]), mesh, "kv_heads", "embed")  # and its gradient
        y = checkpoint_name(project(x, weight), "product")
        if hasattr(self.q_proj, "bias"):
            y = y + join([p.bias[...] for p in projections])
        y = y.reshape(*x.shape[:2], self.kv_heads, -1, self.head_dim)
        # Split: the gradient of three slices would be three arrays padded to the whole and added.
        q, k, v = jnp.split(y, [y.shape[3] - 2, y.shape[3] - 1], axis=3)
        return [a.reshape(*x.shape[:2], -1, self.head_dim) for a in (q, k, v)]


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: StudentConfig, make: "_Initializer"):
        narrow, wide, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = make.linear(narrow, wide, bias=bias)
        self.up_proj = make.linear(narrow, wide, bias=bias)
        self.down_proj = make.linear(wide, narrow, bias=bias)

    def __call__(self, x: Float[Array, "B T D"], mesh: Mesh | None) -> Float[Array, "B T D"]:
        gated = jax.nn.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(constrain(gated, mesh, "rows", None, "mlp"))


class Block(nnx.Module):
    """One layer. In a Student its parameters carry a leading [L]; `Student` scans over it."""

    def __init__(self, config: StudentConfig, make: "_Initializer"):
        self.input_layernorm = RMSNorm(make.ones(config.hidden_size), config.rms_norm_eps)
        self.self_attn = SelfAttention(config, make)
        self.post_attention_layernorm = RMSNorm(make.ones(config.hidden_size), config.rms_norm_eps)
        self.mlp = MLP(config, make)

    def finish(
        self, x: Float[Array, "B T D"], attended: Float[Array, "B T H dh"], mesh: Mesh | None
    ) -> Float[Array, "B T D"]:
        """The residual stream after the layer, from its input `x` and what the heads attended to."""
        x = x + self.self_attn.o_proj(attended.reshape(*x.shape[:2], -1))
        x = constrain(x, mesh, "rows", None, None)
        x = x + self.mlp(self.post_attention_layernorm(x), mesh)
        return constrain(x, mesh, "rows", None, None)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: tuple[Array, Array],
        segment_ids: Array,
        positions: Array,
        o: ForwardOptions,
    ) -> Float[Array, "B T D"]:
        q, k, v = self.self_attn.qkv(self.input_layernorm(x), rope, o.mesh)
        attended = attention(q, k, v, segment_ids, positions, backend=o.attention, mesh=o.mesh)
        return self.finish(x, attended, o.mesh)


class Student(nnx.Module):
    """A dense Qwen2, Qwen2.5, Qwen3 or Llama decoder."""

    def __init__(self, config: StudentConfig, rngs: nnx.Rngs | None = None, param_dtype: Any = jnp.float32):
        make = _Initializer(nnx.Rngs(0) if rngs is None else rngs, config.initializer_range, param_dtype)
        self.config = config
        self.embed_tokens = Embedding(make.normal(config.vocab_size, config.hidden_size))
        self.layers = Block(config, make.stacked(config.num_hidden_layers))
        self.norm = RMSNorm(make.ones(config.hidden_size), config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = make.linear(config.hidden_size, config.vocab_size)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        options: ForwardOptions = ForwardOptions(),
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, in the compute dtype.

        Each segment sees only itself, causally by row index; `positions` are RoPE's. Segment 0 is padding: its hidden
        states are finite and mean nothing.
        """
        x = constrain(self.embed_tokens(tokens, options.compute_dtype, options.mesh), options.mesh, "rows", None, None)
        rope = rope_tables(self.config, positions)
        graphdef, stacked = nnx.split(self.layers)

        def layer(x: Array, params: Any) -> tuple[Array, None]:
            x = checkpoint_name(x, "layer_input")
            return nnx.merge(graphdef, params)(x, rope, segment_ids, positions, options), None

        # Rematerialised layers stay a loop: unrolled, the compiler would merge what is computed again with the first.
        few = self.config.num_hidden_layers <= FEW_LAYERS and options.remat == "none"
        x, _ = jax.lax.scan(_rematerialised(layer, options.remat), x, stacked, unroll=few)
        return self.norm(x)

    def head_weight(self) -> Float[Array, "V D"]:
        """The output head's weight: the embedding table where the config ties them."""
        return (self.embed_tokens if self.config.tie_word_embeddings else self.lm_head).weight[...]

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Float32 logits of hidden states. Training never calls this on whole rows: see `objective.logps`."""
        return project(hidden, self.head_weight(), out_dtype=jnp.float32)


def split(student: Student) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The module's structure and its parameters as a nested dict of arrays: `nnx.merge` puts them together again."""
    graphdef, state = nnx.split(student)
    return graphdef, nnx.to_pure_dict(state)


@functools.lru_cache(maxsize=8)
def _abstract(config: StudentConfig, dtype: str) -> tuple[nnx.GraphDef, Any]:
    return split(nnx.eval_shape(lambda: Student(config, param_dtype=dtype)))


def abstract_params(config: StudentConfig, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The nested dict of ShapeDtypeStructs of a student's parameters, without any memory."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _abstract(config, jnp.dtype(dtype).name)[1])


def graphdef_of(config: StudentConfig) -> nnx.GraphDef:
    """The structure of a student, without any memory: `nnx.merge(graphdef_of(config), params)` is the module."""
    return _abstract(config, "float32")[0]


def init_params(config: StudentConfig, seed: int, dtype: Any = jnp.float32, shardings: Any = None) -> dict[str, Any]:
    """Random parameters (HF's initialisation), the same for a seed on any mesh; made in place by `shardings`."""
    make = lambda key: split(Student(config, nnx.Rngs(params=key), dtype))[1]  # noqa: E731
    return jax.jit(make, out_shardings=shardings)(jax.random.key(seed))


def _rematerialised(layer: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """Wraps a scanned layer so that its backward pass keeps only what `policy` names.

    none: everything; dots: matrix products and attention's result; full: the layer's input; offload: the same, in the
    host's memory.
    """
    policies = jax.checkpoint_policies
    if policy == "none":
        return layer
    if policy == "dots":
        keep = policies.save_only_these_names("attention", "product")
    elif policy == "full":
        keep = policies.nothing_saveable
    else:
        keep = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["layer_input"],
            offload_src="device",
            offload_dst="pinned_host",
        )
    return jax.checkpoint(layer, policy=keep, prevent_cse=False)  # scan already keeps the compiler from merging them


@dataclasses.dataclass(frozen=True)
class _Initializer:
    """Makes parameter arrays: normal weights, zero biases, unit norms, with the stacked axis in front."""

    rngs: nnx.Rngs
    scale: float
    dtype: Any
    stack: tuple[int, ...] = ()

    def stacked(self, layers: int) -> "_Initializer":
        return dataclasses.replace(self, stack=(layers,))

    def normal(self, *shape: int) -> Array:
        values = jax.random.normal(self.rngs.params(), (*self.stack, *shape), jnp.float32)
        return (values * self.scale).astype(self.dtype)

    def ones(self, size: int) -> Array:
        return jnp.ones((*self.stack, size), self.dtype)

    def linear(self, d_in: int, d_out: int, bias: bool = False) -> Linear:
        zeros = jnp.zeros((*self.stack, d_out), self.dtype) if bias else None
        return Linear(self.normal(d_out, d_in), zeros)
