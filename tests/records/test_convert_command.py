"""launch/convert_pairs.py as a user runs it: one line of JSON, one line of error, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*flags):
    command = [sys.executable, str(ROOT / "launch/convert_pairs.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_summary_on_stdout(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 2)
    done = run(f"--input={tmp_path / 'pairs.jsonl'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    summary = json.loads(line)
    assert summary["rows"] == {"read": 2, "kept": 2}
    assert summary["joined"]["duplicate_pairs"] == 1
    assert (tmp_path / "out/manifest.json").is_file()


def test_bad_row_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "q"}\n')
    done = run(f"--input={tmp_path / 'pairs.jsonl'}", f"--output={tmp_path / 'out'}")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "chosen: missing" in line
    assert "columns found: prompt" in line


def test_help_and_missing_flags():
    assert "prompt`, `chosen`, `rejected`" in run("--help").stdout
    done = run("--input=x")
    assert done.returncode == 2
    assert done.stderr == "error: --output: missing; see --help\n"
