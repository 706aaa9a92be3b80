"""A driver that is killed, before servers that fail in every way, ends with the bytes of an undisturbed run.

CHAOS_KILLS sets how often the driver is killed (4 in `make test`; 20 is the figure that the documentation quotes).
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "benchmarks")]
from chaos_run import LoggedPools, options  # noqa: E402
from synthetic import problems  # noqa: E402

from crv.driver import run  # noqa: E402

KILLS = int(os.environ.get("CHAOS_KILLS", "4"))
PROBLEMS = 40 + 20 * KILLS


@contextlib.contextmanager
def server(trouble, unusable):
    command = [sys.executable, str(HERE / "unsteady_server.py"), "0", str(trouble), str(unusable)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in problems(PROBLEMS)))
    return path


def digests(workdir):
    files = [*workdir.glob("*/*"), workdir / "manifest.json"]
    return {str(f.relative_to(workdir)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def kill_after(command, log, calls):
    """Starts the run, kills it once it has sent so many calls; False where it had ended before."""
    before = log.stat().st_size if log.exists() else 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while (log.stat().st_size if log.exists() else 0) < before + 65 * calls:
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr.read()
            return False
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def test_kills_and_failing_servers_do_not_show_in_the_output(source, tmp_path):
    with server(0.0, 0.06) as url:
        # The URL is free to change; the undisturbed run is asked by the same rules.
        undisturbed = run(
            options(source, url), tmp_path / "calm", LoggedPools(options(source, url), tmp_path / "calm.log")
        )
    workdir, log = tmp_path / "run", tmp_path / "log"
    finished: set[str] = set()
    kills = 0
    with server(0.12, 0.06) as url:
        command = [sys.executable, str(HERE / "chaos_run.py"), str(workdir), str(source), url, str(log)]
        while kills < KILLS:
            sent_before = len(log.read_text().split()) if log.exists() else 0
            kills += kill_after(command, log, random.randint(1, 60))
            assert not set(log.read_text().split()[sent_before:]) & finished, "a finished call was sent again"
            with sqlite3.connect(workdir / "ledger.sqlite") as db:
                finished = {key.hex() for (key,) in db.execute("SELECT key FROM calls")}
        sent_before = len(log.read_text().split())
        done = subprocess.run(command, timeout=240, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert not set(log.read_text().split()[sent_before:]) & finished
    assert digests(workdir) == digests(tmp_path / "calm")
    counts = json.loads((workdir / "manifest.json").read_text())["info"]
    states = dict(counts["problems"])
    assert states.pop("total") == sum(states.values()) == PROBLEMS
    assert sum(counts["drops"].values()) == states["dropped"]
    assert counts["problems"] == undisturbed["problems"]
    assert {"critic: not JSON", "critic: empty", "critic: length"} <= set(counts["unusable"])
    with sqlite3.connect(workdir / "ledger.sqlite") as db:
        ends = dict(db.execute("SELECT finish_reason, COUNT(*) FROM calls GROUP BY finish_reason"))
    assert ends["length"] > 0
    assert "failed" not in ends


def test_what_was_sent_again_is_counted_by_reason(source, tmp_path):
    with server(0.2, 0.0) as url:
        few = options(source, url, limit=40)
        summary = run(few, tmp_path / "run", LoggedPools(few, tmp_path / "log"))
    (statistics,) = summary["pool"].values()
    assert statistics["answered"] == summary["asked_now"]
    assert statistics["sent"] == statistics["answered"] + sum(statistics["resent"].values())
    assert {"429", "500", "503", "timeout"} <= set(statistics["resent"])
