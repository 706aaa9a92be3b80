# ruff: noqa: E501 (HLO has long lines)
"""Reading exchanges from optimized HLO."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cogpo_jax import sharding
from cogpo_jax.tpu.collectives import Collective, collectives

TWO_SLICES = [0, 0, 1, 1]
HLO = """\
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[8,4]) -> f32[4,4] {
  %p = f32[8,4]{1,0:T(8,128)} parameter(0)
  %all-reduce.7 = f32[8,4]{1,0:T(8,128)} all-reduce(%p), channel_id=3, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %slice = f32[4,4]{1,0} dynamic-slice(%all-reduce.7), dynamic_slice_sizes={4,4}
}

%body (t: (s32[], bf16[2,16])) -> (s32[], bf16[2,16]) {
  %t = (s32[], bf16[2,16]{1,0}) parameter(0)
  %ag = (bf16[1,16]{1,0:T(2,128)(2,1)}, bf16[2,16]{1,0:T(2,128)(2,1)S(1)}) all-gather-start(%x), replica_groups=[2,2]<=[4], dimensions={0}
  %agd = bf16[2,16]{1,0} all-gather-done(%ag)
  %rs = f32[4,4]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = (s32[], bf16[2,16]{1,0}) tuple(%i, %agd)
}

%cond (t: (s32[], bf16[2,16])) -> pred[] {
  %t = (s32[], bf16[2,16]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%started (p: bf16[4,2]) -> (bf16[4,2], bf16[4,4]) {
  %p = bf16[4,2]{1,0} parameter(0)
  %all-gather.1 = bf16[4,4]{1,0} all-gather(%p), replica_groups=mesh['a'=2,'b'=2] {'b'}, frontend_attributes={chain_id="1"}
  ROOT %start = (bf16[4,2], bf16[4,4]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%finished (p: bf16[4,2]) -> bf16[4,4] {
  %p = bf16[4,2]{1,0} parameter(0)
  %all-gather.2 = bf16[4,4]{1,0} all-gather(%p), replica_groups=mesh['a'=2,'b'=2] {'b'}, frontend_attributes={chain_id="1"}
  ROOT %done = bf16[4,4] custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%blocks (t: (s32[], bf16[4,2])) -> (s32[], bf16[4,2]) {
  %t = (s32[], bf16[4,2]{1,0}) parameter(0)
  %one = (bf16[4,2], bf16[4,4]) fusion(%x), kind=kCustom, calls=%started
  %two = bf16[4,4] fusion(%one), kind=kCustom, calls=%finished
  ROOT %out = (s32[], bf16[4,2]{1,0}) tuple(%i, %x)
}

%until (t: (s32[], bf16[4,2])) -> pred[] {
  %t = (s32[], bf16[4,2]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(8)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: bf16[2,16]) -> f32[10] {
  %x = bf16[2,16]{1,0} parameter(0)
  %while = (s32[], bf16[2,16]{1,0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"28"}}
  %while.2 = (s32[], bf16[4,2]{1,0}) while(%t), condition=%until, body=%blocks
  %cp = (f32[10]{0}, f32[10]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  %sent = (f32[4,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%g, %after), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %grads = f32[10]{0} all-reduce(%w), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
}
"""


def test_loops_are_multiplied_out_and_networks_told_apart():
    found = {(c.kind, c.network): c for c in collectives(HLO, TWO_SLICES)}
    # 28 rounds by the compiler's note, and 8 by the condition's constant, of one that stands in two fusions.
    assert found["all-gather", "ici"] == Collective("all-gather", "ici", 28 + 8, 28 * 64 / 2 + 8 * 32 / 2)
    assert found["reduce-scatter", "ici"] == Collective("reduce-scatter", "ici", 28, 28 * 128 / 2)
    # One as a collective across the slices, one as the TPU compiler hands it to the hosts.
    assert found["all-reduce", "dcn"] == Collective("all-reduce", "dcn", 1 + 1, 2 * 40 / 2 + 4 * 4 * 8 * 128)
    assert abs(found["collective-permute", "ici"].bytes - 44) <= 4  # two flags beside the 40 bytes
    assert len(found) == 4


def test_a_compiled_program_of_eight_devices():
    """A matrix split over fsdp inside a loop of 5, then one sum over replicas."""
    mesh = sharding.make_mesh({"replica": 2, "fsdp": 4})

    def body(x, w):
        def layer(_, x):
            return jnp.tanh(x @ jax.lax.all_gather(w, "fsdp", axis=0, tiled=True))

        return jax.lax.psum(jax.lax.fori_loop(0, 5, layer, x), "replica")

    run = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), P("fsdp")), out_specs=P(), check_vma=False))
    hlo = run.lower(jnp.ones((3, 8)), jnp.ones((8, 8))).compile().as_text()
    found = {(c.kind, c.network): c for c in collectives(hlo, [0] * 4 + [1] * 4)}
    assert found["all-reduce", "dcn"].bytes == 3 * 8 * 4
    gathers = found["all-gather", "ici"]
    assert gathers.bytes == gathers.count * 8 * 8 * 4 * 3 / 4
    assert gathers.count in (1, 5)  # the compiler may lift it out of the loop
