"""The GPU's attention and cuDNN's against XLA's, forward and gradient, on packed rows of 2,048 to 8,192 tokens.

    python benchmarks/gpu_attention.py --output=attention.json [--tiny]

Segments as in real packing (log-normal lengths). For each case: largest difference to the exact result (XLA in float32)
of each back end in bfloat16, milliseconds of each, forward and forward with gradient, and TFLOP/s by what the segments
need. The file is rewritten after each case. `--tiny`, for a CPU: small shapes, the kernel interpreted.
"""

import functools
import json
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
from cogpo_jax.student.attention import blockwise_attention, cudnn_attention, gpu_attention

OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
TINY = flags.DEFINE_bool("tiny", False, "A rehearsal without a GPU.")


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


def case(rows: int, length: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, Any]:
    """One shape, all figures."""
    ids, lengths = packed(rows, length, seed=length)
    ids = jnp.asarray(ids)
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(rows, length, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, d_out = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    live = (ids > 0)[:, :, None, None]

    def gradients(attend: Any, q: Any, k: Any, v: Any) -> Any:
        out, back = jax.vjp(lambda *a: jnp.where(live, attend(*a, ids, ids), 0), q, k, v)
        return out, *back(d_out.astype(out.dtype))

    exact = jax.jit(functools.partial(gradients, blockwise_attention))(q, k, v)
    low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    needed = sum(n * (n + 1) / 2 for n in lengths) * 4 * heads * head_dim
    found: dict[str, Any] = {"rows": rows, "length": length, "heads": heads, "kv_heads": kv_heads, "dh": head_dim}
    backends = {"xla": blockwise_attention, "gpu": functools.partial(gpu_attention, interpret=TINY.value)}
    for name, attend in {**backends, "cudnn": cudnn_attention}.items():
        forward = jax.jit(lambda q, k, v, attend=attend: attend(q, k, v, ids, ids))
        both = jax.jit(functools.partial(gradients, attend))
        try:
            worst = [float(jnp.abs(a.astype(jnp.float32) - b).max()) for a, b in zip(both(*low), exact, strict=True)]
            one, three = milliseconds(forward, *low), milliseconds(both, *low)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # no cuDNN, or not this shape
            found[name] = {"error": str(error).partition("\n")[0]}
            continue
        rate = {"forward_tflops": needed / one / 1e9, "gradient_tflops": 3.5 * needed / three / 1e9}
        found[name] = {"differences": worst, "forward_ms": one, "gradient_ms": three, **rate}
    return found


def main() -> None:
    """All cases."""
    device, done = jax.devices()[0].device_kind, []
    shapes = (
        [(2, 256, 4, 2, 32)] if TINY.value else [(4, 2048, 12, 2, 128), (2, 8192, 12, 2, 128), (1, 8192, 40, 8, 128)]
    )
    for shape in shapes:
        done.append({"device": device, **case(*shape)})
        write_json(Path(OUTPUT.value), done)
        print(json.dumps(done[-1]), flush=True)


if __name__ == "__main__":
    cli.run(main)
