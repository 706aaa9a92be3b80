"""The compiler options that we set for TPUs: all of them, here, each with its reason.

They travel with the jitted programs (`training.step.make_programs`): a run and `launch/compile_check.py` compile the
same thing, and no environment variable decides. More can be tried without code: libtpu reads `LIBTPU_INIT_ARGS`.
"""

from jax.sharding import Mesh

TPU_OPTIONS: dict[str, str] = {
    # Without it XLA turns a product with an fsdp-split weight into a loop of as many small products as there are chips,
    # each adding to the whole result in HBM. Gathering the weight first lets the gather run beside the layer before,
    # and the 1.5B micro-step on v5e:4x4 has 6 loops, not 24.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
}


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """The options for programs on this mesh; None on other platforms, which don't know them."""
    return TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None
