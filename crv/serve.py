"""SGLang workers and their router on one machine: started, watched, restarted, stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from cogpo_jax.atomic import write_json
from cogpo_jax.errors import UserError
from crv.config import option, read_config

_POLL_SECONDS = 1.0
_PROBE_EVERY, _PROBE_SECONDS, _PROBES_LOST = 5.0, 20.0, 6  # a worker that hangs for two minutes is replaced
_STOP_SECONDS = 20.0
_LONGEST_PAUSE = 60.0  # before a worker that keeps dying is started again
_QUIET_SECONDS = 3600.0  # a worker that ran so long begins with short pauses again


@dataclass(frozen=True)
class ServeOptions:
    """What to serve."""

    model: str = option("", "a Hugging Face model folder, tokenizer included")
    served_name: str = option("teacher", "the name that CRV's pool.model gives")
    workers: int = option(1, "servers", low=1)
    gpus_per_worker: int = option(1, "tensor-parallel size; worker i takes GPUs from i * this on; 0 = no GPUs", low=0)
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(30000, "of the router; the workers take the ports after it", low=1)
    router_policy: str = option("cache_aware", "calls of one problem go where its prefix is cached")
    startup_seconds: float = option(1800.0, "until every worker is healthy", low=1.0)
    output: str = option("runs/pool", "folder for pool.json and the logs")
    server_command: tuple[str, ...] = option((sys.executable, "-m", "sglang.launch_server"), "starts a worker")
    server_args: tuple[str, ...] = option(
        ("--enable-cache-report", "--enable-metrics", "--constrained-json-disable-any-whitespace"), "of each worker"
    )
    router_command: tuple[str, ...] = option((sys.executable, "-m", "sglang_router.launch_router"), "starts the router")
    router_args: tuple[str, ...] = option(
        ("--max-concurrent-requests", "4096", "--queue-size", "4096", "--request-timeout-secs", "1800"), "of the router"
    )
    environment: Mapping[str, str] = option({}, "more environment variables")

    @classmethod
    def from_config(cls, config: Any) -> "ServeOptions":
        """Checks a config of the shape of configs/serve_pool.py; raises UserError."""
        options = read_config(cls, config)
        if not options.model or not Path(options.model).is_dir():
            raise UserError(f"model: {options.model!r}: no such folder; give a Hugging Face model folder")
        return options


@dataclass
class _Process:
    """One child in its own process group, with its log."""

    name: str
    command: list[str]
    url: str
    log: Path
    environment: dict[str, str]
    child: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    failures: int = 0  # restarts since it last ran quietly
    started: float = 0.0
    next_start: float = 0.0
    lost_probes: int = 0
    healthy: bool = False
    _file: IO[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        self._file = open(self.log, "ab")  # noqa: SIM115 - closed with the child
        self.child = subprocess.Popen(
            self.command, stdout=self._file, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
        )
        self.lost_probes, self.healthy, self.started = 0, False, time.monotonic()

    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def signal(self, number: int) -> None:
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, number)

    def reap(self) -> None:
        """Ends what is left of the group; a worker's schedulers outlive it otherwise and keep the GPU's memory."""
        self.signal(signal.SIGKILL)
        if self.child is not None:
            self.child.wait()
        if self._file is not None:
            self._file.close()
        self.child = None

    def probe(self, seconds: float) -> bool:
        try:
            self.healthy = httpx.get(f"{self.url}/health", timeout=seconds, trust_env=False).status_code == 200
        except httpx.HTTPError:
            self.healthy = False
        self.lost_probes = 0 if self.healthy else self.lost_probes + 1
        return self.healthy


class PoolServer:
    """Workers behind one router. `run` blocks until a signal; `pool.json` under `output` says what is served."""

    def __init__(self, options: ServeOptions):
        self.options = options
        self.folder = Path(options.output)
        self.workers = [self._worker(i) for i in range(options.workers)]
        self.router = self._router()
        self._stopping = False
        self._ready = False

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM; raises UserError where a worker does not get up in `startup_seconds`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        try:
            for worker in self.workers:
                worker.start()
            self._wait_for(self.workers)
            self.router.start()
            self._wait_for([self.router])
            self._ready = True
            self._describe()
            print(json.dumps({"url": self.router.url, "workers": [worker.url for worker in self.workers]}), flush=True)
            self._watch()
        finally:
            self._shut_down()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _wait_for(self, processes: Sequence[_Process]) -> None:
        deadline = time.monotonic() + self.options.startup_seconds
        waiting = list(processes)
        while waiting and not self._stopping:
            for process in list(waiting):
                if not process.alive():
                    raise UserError(f"{process.name}: ended while starting; see {process.log}")
                if process.probe(2.0):
                    waiting.remove(process)
                    print(f"{process.name} is up at {process.url}", file=sys.stderr, flush=True)
            if waiting and time.monotonic() > deadline:
                raise UserError(
                    f"{waiting[0].name}: not healthy after {self.options.startup_seconds:.0f} s; see {waiting[0].log}"
                )
            time.sleep(_POLL_SECONDS)

    def _watch(self) -> None:
        """Restarts what has died, or hangs, with a growing pause; the router finds a worker again by its health."""
        last_probe = time.monotonic()
        while not self._stopping:
            time.sleep(_POLL_SECONDS)
            now = time.monotonic()
            probe = now - last_probe > _PROBE_EVERY
            last_probe = now if probe else last_probe
            changed = False
            for process in [*self.workers, self.router]:
                changed |= self._mend(process, now, probe)
            if changed:
                self._describe()

    def _mend(self, process: _Process, now: float, probe: bool) -> bool:
        """Whether the process's state has changed."""
        if process.child is None:
            if now < process.next_start:
                return False
            process.start()
            return True
        was_healthy = process.healthy
        hangs = (
            probe and not process.probe(_PROBE_SECONDS) and was_healthy is False and process.lost_probes >= _PROBES_LOST
        )
        starting = process.restarts and process.lost_probes * _PROBE_EVERY < self.options.startup_seconds
        if process.alive() and not (hangs and not starting):
            return was_healthy != process.healthy
        process.failures = 0 if now - process.started > _QUIET_SECONDS else process.failures
        pause = min(_LONGEST_PAUSE, 2.0 ** min(process.failures, 10))
        print(
            f"{process.name} {'hangs' if process.alive() else 'died'}: again in {pause:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        process.reap()
        process.restarts += 1
        process.failures += 1
        process.next_start, process.healthy = now + pause, False
        return True

    def _describe(self) -> None:
        workers = [
            {"url": w.url, "pid": w.child.pid if w.child else None, "healthy": w.healthy, "restarts": w.restarts}
            for w in self.workers
        ]
        document = {
            "url": self.router.url,
            "model": self.options.served_name,
            "path": self.options.model,
            "workers": workers,
        }
        write_json(self.folder / "pool.json", document)

    def _shut_down(self) -> None:
        everything = [self.router, *self.workers]
        for process in everything:
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while any(process.alive() for process in everything) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in everything:
            process.reap()
        (self.folder / "pool.json").unlink(missing_ok=True)

    def _worker(self, number: int) -> _Process:
        o = self.options
        port = o.port + 1 + number
        command = [*o.server_command, "--model-path", o.model, "--served-model-name", o.served_name]
        command += ["--host", o.host, "--port", str(port), *o.server_args]
        environment = {**os.environ, **o.environment}
        if o.gpus_per_worker:
            first = number * o.gpus_per_worker
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(first, first + o.gpus_per_worker)))
            command += ["--tp-size", str(o.gpus_per_worker)]
        name = f"worker-{number}"
        return _Process(name, command, f"http://{o.host}:{port}", self.folder / f"{name}.log", environment)

    def _router(self) -> _Process:
        o = self.options
        command = [*o.router_command, "--host", o.host, "--port", str(o.port), "--policy", o.router_policy]
        command += ["--worker-urls", *(worker.url for worker in self.workers), *o.router_args]
        url = f"http://{o.host}:{o.port}"
        return _Process("router", command, url, self.folder / "router.log", {**os.environ, **o.environment})
