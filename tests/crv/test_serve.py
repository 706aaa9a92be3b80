"""serve_pool keeps its workers up and leaves nothing behind (with stand-ins; real servers are in the SGLang lane)."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from crv.serve import PoolServer, ServeOptions

ROOT = Path(__file__).parents[2]
STAND_IN = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass

if "--die" in sys.argv:
    sys.exit("no GPU")
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""


def free_ports(count):
    """The first of `count` ports in a row that nothing listens on."""
    for first in range(31000 + os.getpid() % 900 * 10, 60000, 10):
        try:
            for port in range(first, first + count):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


def start(tmp_path, **changes):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "model").mkdir()
    command = (sys.executable, str(tmp_path / "stand_in.py"))
    fields = {
        "model": str(tmp_path / "model"),
        "workers": 2,
        "gpus_per_worker": 0,
        "port": free_ports(3),
        "output": str(tmp_path / "pool"),
        "server_command": command,
        "router_command": command,
        "startup_seconds": 60.0,
        **changes,
    }
    config = f"""
        import runpy
        def get_config():
            c = runpy.run_path({str(ROOT / "configs" / "serve_pool.py")!r})["get_config"]()
            c.update({fields!r})
            return c
    """
    (tmp_path / "config.py").write_text(textwrap.dedent(config))
    command = [sys.executable, "launch/serve_pool.py", f"--config={tmp_path / 'config.py'}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def described(tmp_path):
    return json.loads((tmp_path / "pool" / "pool.json").read_text())


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_dead_worker_is_restarted_and_a_signal_ends_everything(tmp_path):
    server = start(tmp_path)
    try:
        assert len(json.loads(server.stdout.readline())["workers"]) == 2
        first, second = (worker["pid"] for worker in described(tmp_path)["workers"])
        os.kill(first, signal.SIGKILL)
        wait_until(
            lambda: described(tmp_path)["workers"][0]["restarts"] == 1 and described(tmp_path)["workers"][0]["healthy"]
        )
        worker, other = described(tmp_path)["workers"]
        assert worker["pid"] != first
        assert (other["pid"], other["restarts"]) == (second, 0)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        assert not alive(worker["pid"])
        assert not alive(second)
        assert not (tmp_path / "pool" / "pool.json").exists()
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server_args": ("--die",)}, r"worker-\d: ended while starting; see .*worker-\d.log"),
        ({"model": "nowhere"}, "model: 'nowhere': no such folder"),
        ({"workers": 0}, "workers: 0: must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(tmp_path, changes, message):
    _, said = start(tmp_path, **changes).communicate(timeout=60)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert "Traceback" not in said


def test_the_pause_before_a_restart_is_capped_and_forgotten_after_a_quiet_hour(tmp_path):
    (tmp_path / "model").mkdir()
    server = PoolServer(ServeOptions(model=str(tmp_path / "model"), output=str(tmp_path)))
    worker = server.workers[0]
    worker.command = [sys.executable, "-c", "raise SystemExit(1)"]

    def pause(ran):
        """Seconds to the next start of a worker that died after running so long."""
        worker.start()
        worker.child.wait()
        now = worker.started + ran
        server._mend(worker, now, False)
        return worker.next_start - now

    worker.restarts = worker.failures = 2000
    assert pause(ran=5) == 60
    assert pause(ran=3700) == 1
    assert pause(ran=5) == 2
    assert worker.restarts == 2003
