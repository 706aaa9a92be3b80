"""metrics.jsonl and TensorBoard: one object a step, cut back to the checkpoint before a run goes on."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from cogpo_jax.atomic import is_remote, write_atomic
from cogpo_jax.data.plan import StepPlan
from cogpo_jax.data.tokens import TokenizedData
from cogpo_jax.objective import metrics


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
    """Appends to `folder/name` and, where asked for, to TensorBoard under `folder/tensorboard`."""

    def __init__(self, folder: str | os.PathLike[str], name: str, *, tensorboard: bool, resume_step: int):
        self._path = epath.Path(folder) / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.cut = truncate_after(self._path, resume_step)
        self._file = _open(self._path)
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            # purge_step hides what an interrupted run logged past its checkpoint.
            self._board = SummaryWriter(os.fspath(epath.Path(folder) / "tensorboard"), purge_step=resume_step or None)

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one line; nested objects become `name/gap` scalars in TensorBoard."""
        self._file.write(json.dumps(record, sort_keys=True) + "\n")
        self._file.flush()
        if self._board is None:
            return
        for name, value in record.items():
            scalars = {f"{name}/{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
            for tag, scalar in scalars.items():
                if isinstance(scalar, (int, float)) and tag != "step":
                    self._board.add_scalar(tag, scalar, record["step"])

    def sync(self) -> None:
        """Brings what was written so far to where it stays: lines up to a checkpoint must not be lost."""
        if isinstance(self._file, _RemoteLines):
            self._file.upload()

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
    means = metrics.finish({name: gaps for name, gaps in sums.items() if name not in ("objective", "nll")})
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
