"""The real TPU compiler (libtpu on this CPU machine) takes our kernels and our programs. Lane: make test-tpu."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cogpo_jax.tpu import topology

topology.prepare()
# The least effort takes a third of the time; collectives and memory are as with the usual one, within 1%.
os.environ["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1.0"

import jax  # noqa: E402 (after libtpu's environment is set)
import jax.numpy as jnp  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from cogpo_jax.student.splash import splash_attention  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("slice_name", "length", "heads", "kv_heads", "head_dim"),
    [
        ("v5e:2x2", 16384, 14, 2, 64),  # 0.5B
        ("v5e:2x2", 32768, 12, 2, 128),  # 1.5B
        ("v5p:2x2x1", 16384, 28, 4, 128),  # 7B
        ("v6e:2x2", 16384, 40, 8, 128),  # 14B
    ],
)
def test_attention_and_its_gradient_compile(slice_name, length, heads, kv_heads, head_dim):
    place = SingleDeviceSharding(topology.find(slice_name).devices()[0])

    def array(n):
        return jax.ShapeDtypeStruct((1, length, n, head_dim), jnp.bfloat16, sharding=place)

    def both(q, k, v, segment_ids, d_out):
        out, back = jax.vjp(lambda q, k, v: splash_attention(q, k, v, segment_ids, segment_ids), q, k, v)
        return out, back(d_out)

    ids = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=place)
    memory = (
        jax.jit(both)
        .lower(array(heads), array(kv_heads), array(kv_heads), ids, array(heads))
        .compile()
        .memory_analysis()
    )
    # Eleven copies of the queries at most: a copy per tile of keys, as the fused kernel makes, would be 64.
    assert memory.temp_size_in_bytes < 11 * length * heads * max(head_dim, 128) * 2


def test_every_known_topology_exists():
    for generation, chip in topology.CHIPS.items():
        for shape in chip.shapes:
            found = topology.find(f"{generation}:{shape}")
            assert len(found.devices()) == found.chips_per_slice


def compile_check(*arguments):
    done = subprocess.run(
        [sys.executable, "launch/compile_check.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return done, json.loads(done.stdout.splitlines()[-1])


def test_two_slices_send_over_the_slow_network_once_a_step_only():
    """Two slices of v5e:2x2 train 0.5B at 2k rows: a micro-step's DCN traffic is a few KB, apply's is the gradients."""
    done, found = compile_check(
        "--config=configs/cogpo_tpu.py:0.5b",
        "--topology=v5e:2x2",
        "--num_slices=2",
        "--config.rows.length=2048",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sent = {p["name"]: sum(c["bytes"] for c in p["collectives"] if c["network"] == "dcn") for p in found["programs"]}
    assert sent["micro-step"] < 1e5
    assert sent["apply"] > 4 * 0.49e9 / 4 * 0.9  # float32 gradients of a chip's share of the parameters


def test_what_does_not_fit_is_refused_saying_by_how_much():
    done, found = compile_check(
        "--config=configs/cogpo_tpu.py:1.5b", "--topology=v5e:2x2", "--config.rows.length=131072"
    )
    assert done.returncode == 1
    assert found["over"] > 0
    assert "DOES NOT FIT: over by" in done.stderr
    assert "rows.length=65536" in done.stderr


def test_offload_compiles_and_keeps_less():
    arguments = ("--config=configs/cogpo_tpu.py:0.5b", "--topology=v5e:2x2", "--programs=micro-step")
    peaks = []
    for remat in ("full", "offload"):
        done, found = compile_check(*arguments, "--config.rows.length=4096", f"--config.remat={remat}")
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(found["programs"][0]["peak"])
    inputs = 24 * 4096 * 896 * 2  # bfloat16, of each layer
    assert peaks[0] - peaks[1] > 0.5 * inputs


def test_the_micro_step_stays_short():
    """Compile time is instructions: 3.3 million here. One long sort, or RoPE's tables in each layer, adds 0.2."""
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/tpu_instructions.py", "--top=1", "--config=configs/cogpo_tpu.py:1.5b"),
            *("--config.rows.per_device=2", "--config.rows.length=4096"),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "0"},  # the usual one
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["instructions"] < 3.5e6
