"""A 70-line sketch of a preference step, without attention biases, packing or a reference: how small it can be.

    python tpu_sketch.py v5e:4x4 ROWS ROW_LENGTH 1.5b|7b LOGITS_CHUNK

Plain causal splash attention over repeated keys, fsdp only. Measured by benchmarks/tpu_compile.py; not part of the
product, and kept as it was measured first (2026-11-22).
"""
# ruff: noqa

import os, sys, time, json, functools
import jax, jax.numpy as jnp, numpy as np, optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as sk, splash_attention_mask as sm
from jax import shard_map

topo_name, B, T = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
size = sys.argv[4]
C = int(sys.argv[5])
cfgs = {"1.5b": (151936, 1536, 8960, 28, 12, 2, 128, True), "7b": (152064, 3584, 18944, 28, 28, 4, 128, False)}
V, D, F, L, H, K, dh, tied = cfgs[size]
topo = topologies.get_topology_desc(platform="tpu", topology_name=topo_name)
mesh = Mesh(np.array(topo.devices), ("fsdp",))
N = len(topo.devices)
ns = lambda *s: NamedSharding(mesh, P(*s))
shapes = dict(
    emb=((V, D), (None, "fsdp")),
    q=((L, D, H * dh), (None, "fsdp", None)),
    k=((L, D, K * dh), (None, "fsdp", None)),
    v=((L, D, K * dh), (None, "fsdp", None)),
    o=((L, H * dh, D), (None, None, "fsdp")),
    g=((L, D, F), (None, "fsdp", None)),
    u=((L, D, F), (None, "fsdp", None)),
    d=((L, F, D), (None, None, "fsdp")),
)
if not tied:
    shapes["head"] = ((V, D), (None, "fsdp"))
params = {k: jax.ShapeDtypeStruct(s, jnp.float32, sharding=ns(*p)) for k, (s, p) in shapes.items()}
psh = {k: ns(*p) for k, (s, p) in shapes.items()}
act = ns("fsdp", None, None)
mask = sm.MultiHeadMask([sm.CausalMask((T, T))] * H)
bs = sk.BlockSizes(
    block_q=1024,
    block_kv=1024,
    block_kv_compute=512,
    block_q_dkv=1024,
    block_kv_dkv=1024,
    block_kv_dkv_compute=512,
    use_fused_bwd_kernel=True,
)
kern = sk.make_splash_mha_single_device(mask, block_sizes=bs)


def att(q, k, v, seg):
    f = lambda q, k, v, s: kern(q, k, v, segment_ids=sk.SegmentIds(s, s))
    return jax.vmap(f)(q, k, v, seg)


att = shard_map(att, mesh=mesh, in_specs=(P("fsdp"),) * 4, out_specs=P("fsdp"), check_vma=False)


def norm(x):
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


bf = jnp.bfloat16


def fwd(p, tok, seg):
    x = p["emb"].astype(bf)[tok]
    x = jax.lax.with_sharding_constraint(x, act)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def blk(x, w):
        w = jax.tree.map(lambda a: a.astype(bf), w)
        h = norm(x)
        tr = lambda a, n: a.reshape(a.shape[0], T, n, dh).transpose(0, 2, 1, 3)
        q, k, v = tr(h @ w["q"], H), tr(h @ w["k"], K), tr(h @ w["v"], K)
        k, v = (jnp.repeat(a, H // K, 1) for a in (k, v))
        a = att(q * dh**-0.5, k, v, seg).transpose(0, 2, 1, 3).reshape(x.shape[0], T, -1)
        x = x + a @ w["o"]
        h = norm(x)
        x = x + (jax.nn.silu(h @ w["g"]) * (h @ w["u"])) @ w["d"]
        return jax.lax.with_sharding_constraint(x, act), None

    x, _ = jax.lax.scan(blk, x, {k: p[k] for k in "q k v o g u d".split()})
    return norm(x)


def logps(h, head, tgt):  # per shard
    hc = h.reshape(-1, C, D)
    tc = tgt.reshape(-1, C)

    @jax.checkpoint
    def f(_, ht):
        h, t = ht
        lg = (h @ head.T).astype(jnp.float32)
        return None, jnp.take_along_axis(lg, t[:, None], 1)[:, 0] - jax.nn.logsumexp(lg, -1)

    _, lp = jax.lax.scan(f, None, (hc, tc))
    return lp.reshape(h.shape[:2])


slogps = shard_map(logps, mesh=mesh, in_specs=(P("fsdp"), P(), P("fsdp")), out_specs=P("fsdp"), check_vma=False)


def loss(p, tok, seg):
    h = fwd(p, tok, seg)
    head = (p["emb"] if tied else p["head"]).astype(bf)
    lp = slogps(h, head, jnp.roll(tok, -1, 1))
    s = jax.vmap(lambda l, g: jax.ops.segment_sum(l, g, num_segments=4))(lp, seg)
    return -jax.nn.log_sigmoid(0.1 * (s[:, 0] - s[:, 1])).mean()


opt = optax.adamw(5e-7)


def step(p, o, tok, seg):
    l, g = jax.value_and_grad(loss)(p, tok, seg)
    g = jax.lax.with_sharding_constraint(g, psh)
    u, o = opt.update(g, o, p)
    return optax.apply_updates(p, u), o, l


o = jax.eval_shape(opt.init, params)
o = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=ns()) if s.ndim == 0 else s, o)
o = (o[0]._replace(mu=params, nu=params),) + tuple(o[1:])
i = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=ns("fsdp"))
t = time.time()
try:
    c = jax.jit(step, donate_argnums=(0, 1)).lower(params, o, i, i).compile()
    ma = c.memory_analysis()
    ca = c.cost_analysis()
    print(
        "OURS",
        json.dumps(
            dict(
                topo=topo_name,
                size=size,
                B=B,
                T=T,
                compile_s=round(time.time() - t, 1),
                peak_GB=ma.peak_memory_in_bytes / 1e9,
                args_GB=ma.argument_size_in_bytes / 1e9,
                temp_GB=ma.temp_size_in_bytes / 1e9,
                flops=ca.get("flops"),
            )
        ),
    )
except Exception as e:
    print("FAIL", str(e)[:600])
