"""Several processes as one run: connecting, checking that all run the same thing, leaving together, saying who hangs.

On a TPU pod each host runs the same command and jax finds the others; elsewhere `config.distributed` names them.
"""

import hashlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from cogpo_jax.errors import UserError


def connect(distributed: Any) -> None:
    """Joins the run's processes; must come before the first use of a device.

    distributed: coordinator ("host:port"), num_processes, process_id; all empty: as jax detects it (TPU pods, Slurm),
    and one process where it detects nothing. Raises UserError where only some are given.
    """
    given = bool(distributed.coordinator), distributed.num_processes > 0, distributed.process_id >= 0
    if any(given) and not all(given):
        raise UserError(
            f"distributed: coordinator={distributed.coordinator!r}, num_processes={distributed.num_processes}, "
            f"process_id={distributed.process_id}: give all three, or none to have them detected"
        )
    if all(given):
        if distributed.process_id >= distributed.num_processes:
            raise UserError(
                f"distributed.process_id: {distributed.process_id}: must be below num_processes "
                f"({distributed.num_processes})"
            )
        jax.distributed.initialize(distributed.coordinator, distributed.num_processes, distributed.process_id)
    elif _detectable():
        jax.distributed.initialize()


def _detectable() -> bool:
    """Whether this is a place where jax finds the other processes by itself: a machine with TPU chips, or Slurm."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(chips and importlib.util.find_spec("libtpu")) or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def check_same(facts: Mapping[str, Any]) -> None:
    """Raises UserError, on every host, naming each fact that differs between hosts and who has what.

    facts: name -> plain data, the same names everywhere.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(json.dumps(facts[name], sort_keys=True).encode()).digest()[:8] for name in sorted(facts)]
    everyone = multihost_utils.process_allgather(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 8))
    faults = []
    for i, name in enumerate(sorted(facts)):
        kinds: dict[bytes, list[int]] = {}
        for host, digest in enumerate(everyone[:, i]):
            kinds.setdefault(digest.tobytes(), []).append(host)
        if len(kinds) > 1:
            mine = facts[name]
            faults.append(f"{name} (hosts {' / '.join(map(str, kinds.values()))}; {mine!r} on this one)")
    if faults:
        raise UserError(f"{', '.join(faults)}: differs between hosts: every host must run the same")


def on_first(work: Callable[[], Any]) -> None:
    """Runs `work` on process 0 alone. Raises its UserError on every host, so that none waits for the others."""
    fault = ""
    if jax.process_index() == 0:
        try:
            work()
        except UserError as error:
            fault = str(error)
    if jax.process_count() > 1:
        told = np.frombuffer(fault.encode()[:1024].ljust(1024, b"\0"), np.uint8)
        fault = bytes(multihost_utils.broadcast_one_to_all(told)).rstrip(b"\0").decode(errors="replace")
    if fault:
        raise UserError(fault)


def all_agree(ok: bool) -> bool:
    """Whether `ok` is true on every host; to be called by all of them."""
    return ok if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(ok)).all())


def code_digest() -> str:
    """Names the code that runs: the hash of every module of the package."""
    package = Path(__file__).parents[1]
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        whole.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def check_shared(workdir: Any) -> None:
    """Raises UserError, on every host, where `workdir` is not one folder that all hosts see."""
    if jax.process_count() == 1:
        return
    number = multihost_utils.broadcast_one_to_all(np.array(secrets.randbits(31), np.int32))
    nonce = epath.Path(workdir) / f".shared-{int(number):08x}"
    if jax.process_index() == 0:
        nonce.parent.mkdir(parents=True, exist_ok=True)
        nonce.write_text("written by process 0 to see whether all processes see this folder\n")
    multihost_utils.sync_global_devices("nonce written")
    seen = multihost_utils.process_allgather(np.array(nonce.exists()))
    if jax.process_index() == 0:
        nonce.unlink()
    if not seen.all():
        blind = np.flatnonzero(~seen).tolist()
        raise UserError(f"--workdir: {workdir}: hosts {blind} don't see it: give a shared folder or gs://...")


class Left(BaseException):
    """The run was asked to stop and has kept what it had. Not an Exception, so that nothing on the way swallows it."""


class Leaving:
    """Whether the run should stop: after SIGTERM or a preemption notice, at a moment that all processes agree on.

    One process alone is stopped where it is (`Left`): until it trains there is nothing to save. Once `at_ticks` is set,
    and with several processes always, it is stopped by the next `tick` or `leave_if_due`.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._alone = jax.process_count() == 1
        self._ticks = 0
        self.due = self.at_ticks = False

    def tick(self) -> bool:
        """To be called by all processes at the same points, each micro-batch; True from the agreed point on."""
        self._ticks += 1
        if self._alone:
            self.due = self._asked.is_set()
        elif not self.due:  # jax's coordination service carries one process's notice to all
            self.due = multihost_utils.reached_preemption_sync_point(self._ticks)
        return self.due

    def leave_if_due(self) -> None:
        """A tick that raises Left."""
        if self.tick():
            raise Left

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()
        if not self.at_ticks:
            self.at_ticks = True  # a second signal must not interrupt what follows the first
            raise Left

    def __enter__(self) -> "Leaving":
        # With several processes jax.distributed listens for SIGTERM itself; a handler of ours would take it away.
        self._listens = self._alone and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)


class Watchdog:
    """Names host, step and what it was doing when nothing is done for `seconds`, on stderr, again each such time."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._doing, self._step, self._since = "starting", 0, time.monotonic()
        self._stop = threading.Event()

    def at(self, step: int, doing: str) -> None:
        """The run is alive: it has finished `step` steps and does this now."""
        self._step, self._doing, self._since = step, doing, time.monotonic()

    def alive(self) -> None:
        """The run is alive and still does what it did."""
        self._since = time.monotonic()

    def _watch(self) -> None:
        said = self._since
        while not self._stop.wait(min(1.0, self._seconds / 4)):
            quiet = time.monotonic() - max(self._since, said)
            if quiet >= self._seconds:
                said = time.monotonic()
                print(
                    f"watchdog: host {jax.process_index()} ({socket.gethostname()}): nothing finished for "
                    f"{said - self._since:.0f} s; {self._step} steps are done, then: {self._doing}",
                    file=sys.stderr,
                    flush=True,
                )

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
