"""An evaluation of 500 samples killed ten times by kill -9 ends with the same samples.jsonl as one that ran through.

    python benchmarks/evaluate_kill.py FOLDER [--samples=500] [--kills=10]

The samples come from a scripted server here, which counts what it is asked: what was answered and kept is never asked
again, so only calls in flight at a kill come twice. Prints one JSON object; exit code 1 where the files differ.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

PER_PROBLEM, CONCURRENCY = 5, 8


class Answers(BaseHTTPRequestHandler):
    """Answers that depend on question and seed alone; kills the client when told to."""

    asked: ClassVar[Counter[tuple[str, int]]] = Counter()
    kill_at: ClassVar[set[int]] = set()
    client: ClassVar[subprocess.Popen[bytes] | None] = None
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "scripted"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question, seed = body["messages"][-1]["content"], body["seed"]
        with self.lock:
            self.asked[question, seed] += 1
            if self.asked.total() in self.kill_at and self.client:
                os.kill(self.client.pid, signal.SIGKILL)
        number = int(re.findall(r"\d+", question)[0])
        message = {"content": f"Twice that is \\boxed{{{2 * number + (seed % 3 == 0)}}}."}
        usage = {"completion_tokens": 5 + seed % 90, "prompt_tokens": 20}
        self.reply({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    def reply(self, value: Any) -> None:
        """Sends JSON; the client may be gone."""
        data = json.dumps(value).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    problems = [{"id": i, "problem": f"Twice {i}?", "answer": 2 * i} for i in range(given.samples // PER_PROBLEM)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a request that a kill cut off
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ["--task=math", f"--data={folder / 'data.jsonl'}", f"--samples={PER_PROBLEM}", "--temperature=1"]
    options += [f"--pool.url=http://127.0.0.1:{server.server_port}", f"--pool.concurrency={CONCURRENCY}"]

    def run(name: str) -> int:
        command = [sys.executable, "-m", "cogpo_jax", "evaluate", *options, f"--output={folder / name}"]
        Answers.client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return Answers.client.wait()

    assert run("whole") == 0
    Answers.asked.clear()
    step = given.samples // (given.kills + 1)
    Answers.kill_at |= {step * (i + 1) for i in range(given.kills)}
    codes = [run("killed") for _ in range(given.kills)]
    last = run("killed")
    same = (folder / "whole" / "samples.jsonl").read_bytes() == (folder / "killed" / "samples.jsonl").read_bytes()
    print(
        json.dumps(
            {
                "samples": given.samples,
                "kills": sum(code == -signal.SIGKILL for code in codes),
                "last_exit_code": last,
                "asked": Answers.asked.total(),
                "asked_twice": sum(count - 1 for count in Answers.asked.values()),
                "same_samples": same,
            }
        )
    )
    sys.exit(not (same and last == 0))


if __name__ == "__main__":
    main()
