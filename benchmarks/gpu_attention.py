"""The GPU's attention against XLA's, cuDNN's and jax's own kernel, on packed rows of 2,048 to 8,192 tokens.

    python benchmarks/gpu_attention.py --output=attention.json [--tune] [--tiny]

Segments as in real packing (log-normal lengths). For each case: the distance |x - exact| / |exact| of each back end's
result and gradients in bfloat16 to the exact ones (XLA in float32), milliseconds, forward and forward with gradient,
and TFLOP/s by what the segments need. `flash float32` is our kernel in float32. cuDNN gets the segments as a mask,
jax's `mha` gets the key heads repeated: neither skips other segments. The file is rewritten after each case. `--tune`:
times other blocks too. `--tiny`, for a CPU: small shapes, the kernel interpreted.
"""

import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cogpo_jax import cli
from cogpo_jax.atomic import write_json
from cogpo_jax.student.attention import blockwise_attention
from cogpo_jax.student.flash import BFLOAT16, Tile, flash_attention

OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
TUNE = flags.DEFINE_bool("tune", False, "Times other blocks too.")
TINY = flags.DEFINE_bool("tiny", False, "A rehearsal without a GPU.")

# Queries, keys, warps, stages of blocks to try: of the forward kernel, and of the gradients'.
FORWARD = [(128, 64, 4, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 32, 4, 3), (64, 64, 4, 3), (64, 128, 4, 2)]
QUERIES = [(128, 32, 8, 2), (128, 32, 4, 3), (64, 64, 4, 2), (64, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 2)]
KEYS = [(32, 128, 4, 3), (32, 128, 8, 2), (64, 64, 4, 2), (32, 64, 4, 2), (64, 128, 8, 3), (64, 128, 4, 2)]


def packed(rows: int, length: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """(segment ids [rows, length], tokens of each segment)."""
    rng, ids, lengths = np.random.default_rng(seed), np.zeros((rows, length), np.int32), []
    for row in ids:
        start = 0
        for segment in range(1, length):
            size = int(np.clip(rng.lognormal(np.log(length / 8), 0.8), 16, length - start))
            row[start : start + size] = segment
            lengths.append(size)
            start += size
            if start >= length - 16:
                break
    return ids, lengths


def milliseconds(f: Callable[..., Any], *arrays: Any) -> float:
    """Median of seven calls after one that compiles."""
    jax.block_until_ready(f(*arrays))
    times = []
    for _ in range(7):
        began = time.perf_counter()
        jax.block_until_ready(f(*arrays))
        times.append(time.perf_counter() - began)
    return 1e3 * sorted(times)[3]


def cudnn(q: Any, k: Any, v: Any, segment_ids: Any, positions: Any) -> Any:
    """cuDNN through jax.nn, the segments as a mask [B, 1, T, T]."""
    order = jnp.arange(q.shape[1])
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    visible = same & (order[:, None] >= order[None, :])
    return jax.nn.dot_product_attention(q, k, v, mask=visible[:, None], implementation="cudnn")


def mha(q: Any, k: Any, v: Any, segment_ids: Any, positions: Any) -> Any:
    """jax's Pallas Triton kernel (deprecated)."""
    from jax.experimental.pallas.ops.gpu.attention import mha

    groups, scale = q.shape[2] // k.shape[2], 1 / math.sqrt(q.shape[-1])
    k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
    return mha(q, k, v, segment_ids, sm_scale=scale, causal=True, interpret=TINY.value)


def distance(x: Any, exact: Any) -> float:
    """|x - exact| / |exact|."""
    return float(jnp.linalg.norm((x.astype(jnp.float32) - exact).ravel()) / jnp.linalg.norm(exact.ravel()))


def gradients(attend: Any, ids: Any, d_out: Any, q: Any, k: Any, v: Any) -> Any:
    """The result and the three gradients."""
    live = (ids > 0)[:, :, None, None]
    out, back = jax.vjp(lambda *a: jnp.where(live, attend(*a, ids, ids), 0), q, k, v)
    return out, *back(d_out.astype(out.dtype))


def case(rows: int, length: int, heads: int, kv_heads: int, head_dim: int, tune: bool) -> dict[str, Any]:
    """One shape, all figures."""
    segments, lengths = packed(rows, length, seed=length)
    ids = jnp.asarray(segments)
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(rows, length, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, d_out = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))

    exact = jax.jit(functools.partial(gradients, blockwise_attention))(ids, d_out, q, k, v)
    low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    needed = sum(n * (n + 1) / 2 for n in lengths) * 4 * heads * head_dim
    found: dict[str, Any] = {"rows": rows, "length": length, "heads": heads, "kv_heads": kv_heads, "dh": head_dim}
    flash = functools.partial(flash_attention, interpret=TINY.value)
    backends = {"xla": blockwise_attention, "flash": flash, "flash float32": flash, "mha": mha, "cudnn": cudnn}

    def timed(attend: Any, arrays: list[Any]) -> dict[str, Any]:
        forward = jax.jit(lambda ids, q, k, v: attend(q, k, v, ids, ids))
        both = jax.jit(functools.partial(gradients, attend))  # ids are an argument: XLA folds constants for minutes
        try:
            apart = [distance(a, b) for a, b in zip(both(ids, d_out, *arrays), exact, strict=True)]
            one, three = milliseconds(forward, ids, *arrays), milliseconds(both, ids, d_out, *arrays)
        except Exception as error:  # no cuDNN, or not this shape, or blocks that do not fit: the others still count
            return {"error": str(error).strip().partition("\n")[0][:300]}
        rate = {"forward_tflops": needed / one / 1e9, "gradient_tflops": 3.5 * needed / three / 1e9}
        return {"distances": apart, "forward_ms": one, "gradient_ms": three, **rate}

    for name, attend in backends.items():
        found[name] = timed(attend, [q, k, v] if name.endswith("float32") else low)
        print(name, found[name], file=sys.stderr, flush=True)
    if tune:
        found["tune"] = []
        for part, tries in (("forward", FORWARD), ("queries", QUERIES), ("keys", KEYS)):
            for sizes in tries:
                tiles = dataclasses.replace(BFLOAT16, **{part: Tile(*sizes)})
                one = timed(functools.partial(flash, tiles=tiles), low)
                found["tune"].append({"part": part, "tile": sizes, **one})
    return found


def main() -> None:
    """All cases."""
    device, done = jax.devices()[0].device_kind, []
    shapes = (
        [(2, 256, 4, 2, 32)] if TINY.value else [(2, 8192, 12, 2, 128), (4, 2048, 12, 2, 128), (1, 8192, 40, 8, 128)]
    )
    for shape in shapes:
        tune = TUNE.value and not done  # the first shape's will do
        done.append({"device": device, "jax": jax.__version__, **case(*shape, tune=tune)})
        write_json(Path(OUTPUT.value), done)
        print(json.dumps(done[-1]), flush=True)


if __name__ == "__main__":
    cli.run(main)
