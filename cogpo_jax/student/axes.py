"""The student's parameters by path, and the logical axis (`cogpo_jax.sharding.RULES`) of each of their dimensions."""

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
    "layers.mlp.up_proj.weight": ("layers", "mlp", "embed"),
    "layers.mlp.down_proj.weight": ("layers", "embed", "mlp"),
    "norm.weight": ("norm",),
    "lm_head.weight": ("vocab", "embed"),
}
