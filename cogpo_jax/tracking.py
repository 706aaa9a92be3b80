"""Weights & Biases and trackio beside TensorBoard: optional packages, asked for by `config.log`.

A run's id is made once and kept in the workdir, so that a run that goes on adds to the same curves.
"""

import importlib.util
import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from cogpo_jax import __version__
from cogpo_jax.atomic import write_json
from cogpo_jax.errors import UserError

SERVICES = ("wandb", "trackio")
IDS_FILE = "tracking.json"


def check(log: Mapping[str, Any]) -> None:
    """Raises UserError where a service is asked for whose package is not installed."""
    for service in SERVICES:
        if log.get(service) and importlib.util.find_spec(service) is None:
            raise UserError(f"log.{service}: {log[service]}: the package is not installed: pip install {service}")


def code_version() -> dict[str, str]:
    """The package's version and, in a checkout, its commit, with `+changes` where files differ from it."""
    run = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return {"version": __version__}
    changed = subprocess.run([*run, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return {"version": __version__, "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")}


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, number) of a metrics line but its step; what is by gap becomes `name/gap`."""
    for name, value in record.items():
        parts = {f"{name}/{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
        yield from ((tag, v) for tag, v in parts.items() if isinstance(v, int | float) and tag != "step")


class Trackers:
    """The services that `config.log` names, each by its project; `write` takes metrics lines, `close` ends the run.

    A step that is made again after a stop has the same numbers as before: wandb keeps the first, trackio both.
    """

    def __init__(self, config: Mapping[str, Any], workdir: str | os.PathLike[str]):
        check(config["log"])
        self._runs: list[Any] = []
        wanted = {service: config["log"].get(service) for service in SERVICES if config["log"].get(service)}
        if not wanted:
            return
        path = epath.Path(workdir) / IDS_FILE
        ids = json.loads(path.read_text()) if path.exists() else {}
        name = epath.Path(workdir).name
        ids = {service: ids.get(service, f"{name}-{secrets.token_hex(4)}") for service in wanted}
        write_json(path, ids)
        settings = {**config, "code": code_version()}
        for service, project in wanted.items():
            self._runs.append(_START[service](project, ids[service], name, settings))

    def write(self, record: Mapping[str, Any], prefix: str = "") -> None:
        """Sends the numbers of a metrics line under its step; `prefix` (as `eval/`) stands before each name."""
        numbers = {prefix + tag: number for tag, number in scalars(record)} if self._runs else {}
        for run in self._runs:
            run.log(numbers, step=record["step"])

    def close(self) -> None:
        """Ends the runs at the services."""
        for run in self._runs:
            run.finish()
        self._runs = []


def _start_wandb(project: str, run_id: str, name: str, settings: Mapping[str, Any]) -> Any:
    import wandb

    return wandb.init(project=project, id=run_id, name=name, config=dict(settings), resume="allow")


def _start_trackio(project: str, run_id: str, name: str, settings: Mapping[str, Any]) -> Any:
    import trackio

    # trackio knows a run by its name.
    return trackio.init(project=project, name=run_id, config=dict(settings), resume="allow")


_START = {"wandb": _start_wandb, "trackio": _start_trackio}
