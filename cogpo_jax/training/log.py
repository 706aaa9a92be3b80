"""What a step leaves behind: its line in metrics.jsonl and TensorBoard, how fast it was, what it used.

Lines are cut back to the checkpoint before a run goes on. FLOPs are the model's by formula: a multiply-add is 2, and
only matrix products count (the rest is below 1% at these widths).
"""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from cogpo_jax.atomic import is_remote, write_atomic
from cogpo_jax.data.plan import StepPlan
from cogpo_jax.data.tokens import TokenizedData
from cogpo_jax.objective.cogpo import finish
from cogpo_jax.student.attention import tiles
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions
from cogpo_jax.tracking import Trackers, scalars

_BEGAN = time.perf_counter()  # this module is imported as the command starts
# Vendors' figures for dense bfloat16, per device, by how jax names the device.
_PEAK_FLOPS = {
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def truncate_after(path: epath.Path, step: int) -> int:
    """Keeps the lines of steps up to `step`, whole lines only; returns how many were cut."""
    if not path.is_file():
        return 0
    lines = path.read_text().splitlines(keepends=True)
    keep = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # the line that a killed process was writing
            continue
        if line.endswith("\n") and record["step"] <= step:
            keep.append(line)
    if len(keep) != len(lines):
        write_atomic(path, "".join(keep))
    return len(lines) - len(keep)


def last_step(path: epath.Path) -> int:
    """The last line's step; 0 without a whole line."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return next((int(json.loads(line)["step"]) for line in reversed(lines) if line.endswith("\n")), 0)


class MetricsLog:
    """Appends to `folder/name` and, where asked for, to TensorBoard under `folder/tensorboard` and to `trackers`."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        name: str,
        *,
        tensorboard: bool,
        resume_step: int,
        trackers: Trackers | None = None,
    ):
        self._path = epath.Path(folder) / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.cut = truncate_after(self._path, resume_step)
        self._file = _open(self._path)
        self._board = None
        self._trackers = trackers
        if tensorboard:
            from tensorboardX import SummaryWriter

            # purge_step hides what an interrupted run logged past its checkpoint.
            self._board = SummaryWriter(os.fspath(epath.Path(folder) / "tensorboard"), purge_step=resume_step or None)

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one line; nested objects become `name/gap` scalars in TensorBoard."""
        self._file.write(json.dumps(record, sort_keys=True) + "\n")
        self._file.flush()
        if self._board is not None:
            for tag, scalar in scalars(record):
                self._board.add_scalar(tag, scalar, record["step"])
        if self._trackers is not None:
            self._trackers.write(record)

    def sync(self) -> None:
        """Brings what was written so far to where it stays: lines up to a checkpoint must not be lost."""
        if isinstance(self._file, _RemoteLines):
            self._file.upload()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Makes all lines durable and closes the files."""
        if isinstance(self._file, _RemoteLines):
            self._file.upload()
        else:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._trackers is not None:
            self._trackers.close()


class _RemoteLines:
    """Appends to an object, which can only be written whole: at most every half minute, and at the end."""

    SECONDS = 30.0

    def __init__(self, path: epath.Path):
        self._path = path
        self._text = path.read_text() if path.exists() else ""
        self._uploaded = time.monotonic()

    def write(self, line: str) -> None:
        self._text += line

    def flush(self) -> None:
        if time.monotonic() - self._uploaded > self.SECONDS:
            self.upload()

    def upload(self) -> None:
        write_atomic(self._path, self._text)
        self._uploaded = time.monotonic()


def _open(path: epath.Path) -> Any:
    return _RemoteLines(path) if is_remote(path) else open(path, "a", encoding="utf-8")


def step_record(
    step: StepPlan, sums: Any, grad_norm: float, learning_rate: float, speed: Mapping[str, float], data: TokenizedData
) -> dict[str, Any]:
    """The metrics line of a step: loss (mean over pair weight or response tokens), counts, speed, means by gap."""
    micro = step.micro_batches
    tokens = sum(m.tokens for m in micro)
    responses = [p.response for m in micro for p in m.placements]
    means = finish({name: gaps for name, gaps in sums.items() if name not in ("objective", "nll")})
    means["pair_loss"] = means.pop("loss", {})
    weight = float(sums["nll"]["all"][1] if "nll" in sums else sums["loss"]["all"][1])
    return {
        "step": step.step + 1,
        "epoch": step.epoch,
        "loss": float(sums["objective"]["all"][0]) / weight,
        "pairs": sum(len(m.pairs) for m in micro),
        "groups": len(step.groups),
        "responses": len(responses),
        "repeated_responses": step.repeated_responses,
        "tokens": tokens,
        "response_tokens": int(data.counted_lengths[responses].sum()),
        "micro_batches": len(micro),
        "fill": tokens / sum(m.shape.tokens for m in micro),
        "learning_rate": learning_rate,
        "grad_norm": grad_norm,
        **speed,
        **{name: gaps for name, gaps in means.items() if gaps},
    }


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


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs by part: the layers' projections, attention's two products (and their gradients), the vocabulary head."""

    layers: float = 0.0
    attention: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.layers + self.attention + self.head

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(getattr(self, part) + getattr(other, part) for part in ("layers", "attention", "head")))


def model_flops(
    student: StudentConfig,
    segments: Sequence[int],
    counted: int,
    *,
    backward: bool = True,
    remat: str = "none",
) -> Flops:
    """What a forward pass (with its gradient) over packed segments needs.

    segments: tokens of each; counted: tokens that go through the head. Per token and layer 2 FLOPs a weight, attention
    causal within its segment: 4 H dh n (n + 1) / 2; the gradient is twice the forward pass (Kaplan et al., arXiv
    2001.08361). remat "full" and "offload" add the layers' forward pass once more, but for its last product (down_proj:
    no gradient needs its result); "dots" adds nothing here. The head is always recomputed for its gradient
    (`objective.logps`), and flash attention its scores (one product of five): both are work that this algorithm needs,
    and count where `remat` is not "none"; "none" is the model's own, for MFU.
    """
    tokens = sum(segments)
    d, q, kv = (
        student.hidden_size,
        *(n * student.head_dim for n in (student.num_attention_heads, student.num_key_value_heads)),
    )
    down = d * student.intermediate_size
    weights = 2 * d * q + 2 * d * kv + 3 * down
    layers, head = student.num_hidden_layers * 2.0 * weights * tokens, 2.0 * d * student.vocab_size * counted
    attention = student.num_hidden_layers * 2.0 * q * sum(n * (n + 1) for n in segments)
    if not backward:
        return Flops(layers, attention, head)
    again = remat in ("full", "offload")
    passes = Flops(3 + again * (1 - down / weights), 3 + again + 0.5 * (remat != "none"), 3 + (remat != "none"))
    return Flops(layers * passes.layers, attention * passes.attention, head * passes.head)


def visited_pairs(segments: Sequence[int], row_length: int, tile: int, *, skips: bool = True) -> int:
    """Query-key pairs of the tiles [tile, tile] that attention works on in one row; needed are n (n + 1) / 2 a segment.

    segments: tokens of each, one behind the other from the row's start; the rest is padding. skips: tiles of other
    segments are left out (`student.attention.tiles`), else every tile at or below the diagonal is worked on.
    """
    first = np.arange(-(-row_length // tile)) * tile  # each query tile's first token
    if not skips:
        return int((first // tile + 1).sum()) * tile**2
    starts = np.cumsum([0, *segments])
    begins = starts[np.searchsorted(starts, first, side="right") - 1]  # of the segment that this token is in
    from_key = np.where(first < starts[-1], begins, first) // tile  # padding sees itself alone
    return int((first // tile - from_key + 1).sum()) * tile**2
