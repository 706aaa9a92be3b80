"""How fast a run is and what it uses: seconds, tokens/s, MFU, goodput, memory."""

import ctypes
import math
import resource
import sys
import time

import jax

from cogpo_jax.data.plan import StepPlan
from cogpo_jax.data.tokens import TokenizedData
from cogpo_jax.student.attention import tiles
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, abstract_params
from cogpo_jax.training.flops import model_flops, visited_pairs

_BEGAN = time.perf_counter()  # this module is imported as the command starts
# Vendors' figures for dense bfloat16, per device, by how jax names the device.
_PEAK_FLOPS = {
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


_SMALL = 200_000_000  # parameters of a student whose buffers may all stay with the process


def keep_freed_memory(student: StudentConfig) -> bool:
    """Makes the C library keep freed memory for the next step, for a small student on a CPU; whether it did.

    XLA takes its buffers from malloc, anew for every call. glibc maps large ones and gives them back: the kernel then
    clears every page of every step (a sixth of the CPU time of a student of 1.6 M parameters, more on two threads). A
    large student's buffers are left alone, since what is kept could break up its memory. Changes no result.
    """
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(student)))
    if jax.default_backend() != "cpu" or parameters > _SMALL:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
    return all((mallopt(mmap_max, 0), mallopt(trim_threshold, 2**31 - 1), mallopt(arena_max, 1)))


class Speedometer:
    """Measures steps by the time between their ends, what is between them (checkpoints, evaluation) left out."""

    def __init__(self, student: StudentConfig, forward: ForwardOptions):
        self._student, self._forward, self._in_steps = student, forward, 0.0
        self._compiling = 0.0
        self._last, self._compiled = time.perf_counter(), 0.0
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    def _on_duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            self._compiling += duration_secs

    def mark(self) -> None:
        """A step begins: the time since the last one's end was not a step's."""
        self._last, self._compiled = time.perf_counter(), self._compiling

    def step(self, step: StepPlan, data: TokenizedData) -> dict[str, float]:
        """A step has ended: its line's figures.

        goodput: share of the time since the command started that went into steps, compilation not counted.
        memory_bytes: the peak on a device (on a CPU: of this process). model_flops: what the step's segments need,
        causal attention and no recomputation; mfu: its share of the devices' peak, where that is known.
        attention_excess: query-key pairs of the tiles that attention works on, over those that are needed.
        """
        now, compiling = time.perf_counter(), self._compiling - self._compiled
        seconds = now - self._last
        self._in_steps += max(0.0, seconds - compiling)
        self.mark()
        placed = [p.response for m in step.micro_batches for p in m.placements]
        # The last token is only ever a target: it has no place in the row.
        segments = (data.prompt_lengths[data.group_of_response[placed]] + data.response_lengths[placed] - 1).tolist()
        flops = model_flops(self._student, segments, int(data.counted_lengths[placed].sum())).total
        found = {
            "seconds": seconds,
            "tokens_per_second": sum(segments) / seconds,
            "goodput": self._in_steps / (now - _BEGAN),
            "memory_bytes": _peak_memory(),
            "model_flops": flops,
            "attention_excess": self._attention_excess(step, segments),
        }
        peak = next((f for kind, f in _PEAK_FLOPS.items() if jax.devices()[0].device_kind.startswith(kind)), None)
        return found | ({"mfu": flops / seconds / (peak * jax.device_count())} if peak else {})

    def _attention_excess(self, step: StepPlan, segments: list[int]) -> float:
        groups = self._student.num_attention_heads // self._student.num_key_value_heads
        sizes, work = iter(segments), 0
        for micro in step.micro_batches:
            rows: list[list[int]] = [[] for _ in range(micro.shape.rows)]
            for placement in micro.placements:  # each behind the last one of its row
                rows[placement.row].append(next(sizes))
            length = micro.shape.length
            side, skips = tiles(self._forward.attention, self._forward.compute_dtype, length, groups)
            work += sum(visited_pairs(row, length, side, skips=skips) for row in rows)
        return work / sum(n * (n + 1) // 2 for n in segments)


def _peak_memory() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident  # bytes there, kilobytes elsewhere
