"""Tunix 0.1.7's DPO step through the TPU compiler (its own model, loss and sharding; only this file is ours).

    python tunix_tpu.py v5e:4x4 PAIRS PROMPT_TOKENS RESPONSE_TOKENS qwen2p5_1p5b TENSOR

Needs google-tunix==0.1.7 and the libtpu that jax pins. Measured by benchmarks/tpu_compile.py.
"""
# ruff: noqa

import os, sys, time

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
import jax, jax.numpy as jnp, numpy as np, optax, json
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from flax import nnx
from tunix.models.qwen2 import model as qm
from tunix.sft.dpo import dpo_trainer as dt
from tunix.rl import common

topo_name = sys.argv[1]
npairs = int(sys.argv[2])
PL = int(sys.argv[3])
CL = int(sys.argv[4])
preset = sys.argv[5]
tp = int(sys.argv[6]) if len(sys.argv) > 6 else 1
flash = (sys.argv[7] == "flash") if len(sys.argv) > 7 else False
topo = topologies.get_topology_desc(platform="tpu", topology_name=topo_name)
mesh = Mesh(np.array(topo.devices).reshape(-1, tp), ("fsdp", "tp"))


def shard(x, s):
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*s)))


qm.shard = shard
cfg = getattr(qm.ModelConfig, preset)()
cfg.remat_config = qm.RematConfig.DECODER
cfg.dtype = jnp.bfloat16
cfg.param_dtype = jnp.float32
cfg.use_flash_attention = flash
mk = lambda: qm.Qwen2(cfg, rngs=nnx.Rngs(0))
with jax.set_mesh(mesh) if False else mesh:
    amodel = nnx.eval_shape(mk)
    gd, st = nnx.split(amodel)
    specs = nnx.get_partition_spec(st)

    def mkopt():
        m = mk()
        return nnx.Optimizer(m, optax.adamw(5e-7), wrt=nnx.Param)

    aopt = nnx.eval_shape(mkopt)
    ogd, ost = nnx.split(aopt)
    ospecs = nnx.get_partition_spec(ost)

    def put(s, p):
        p = p if isinstance(p, P) else P()
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, p))

    def absl(tree, specs):
        return jax.tree.map(lambda s, p: put(s, p), tree, specs)

    st = absl(st, specs)
    ost = absl(ost, ospecs)
    refst = st
    B = 2 * npairs
    rep = NamedSharding(mesh, P("fsdp"))
    T = PL + CL
    ex = dt.TrainExample(
        input_ids=jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=rep),
        positions=jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=rep),
        attention_mask=jax.ShapeDtypeStruct((B, T, T), jnp.bool_, sharding=rep),
        ref_chosen_logps=jax.ShapeDtypeStruct((npairs,), jnp.float32, sharding=rep),
        ref_rejected_logps=jax.ShapeDtypeStruct((npairs,), jnp.float32, sharding=rep),
        completion_mask=jax.ShapeDtypeStruct((B, CL), jnp.int32, sharding=rep),
        logits_to_keep=CL,
    )

    def step(st, ost, ex):
        model = nnx.merge(gd, st)
        opt = nnx.merge(ogd, ost)
        (loss, aux), g = nnx.value_and_grad(dt.dpo_loss_fn, has_aux=True)(model, ex)
        opt.update(model, g)
        return nnx.state(model), nnx.state(opt), loss

    t = time.time()
    try:
        low = jax.jit(step, donate_argnums=(0, 1)).lower(st, ost, ex)
        c = low.compile()
        dtm = time.time() - t
        ma = c.memory_analysis()
        ca = c.cost_analysis()
        ca = ca[0] if isinstance(ca, list) else ca
        print(
            "STEP",
            json.dumps(
                dict(
                    compile_s=round(dtm, 1),
                    peak_GB=ma.peak_memory_in_bytes / 1e9,
                    args_GB=ma.argument_size_in_bytes / 1e9,
                    temp_GB=ma.temp_size_in_bytes / 1e9,
                    flops=ca.get("flops"),
                    optimal_s=ca.get("optimal_seconds"),
                    bytes=ca.get("bytes accessed"),
                )
            ),
        )
    except Exception as e:
        print("STEP FAIL", str(e)[:700])
