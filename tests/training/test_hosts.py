"""Two processes of two devices each (gloo), as two hosts would run: the same command, one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cogpo_jax.training.checkpoint import Checkpoints
from cogpo_jax.training.hosts import Watchdog

ROOT = Path(__file__).parents[2]
FIELDS = {
    "epochs": 20,
    "checkpoint.every": 1000,
    "optimizer.learning_rate": 1e-3,
    "rows.length": 96,
    "rows.shapes": 1,
}


def start_hosts(records, tokenizer_folder, models, workdirs, *extra):
    """Starts launch/train.py once for each workdir; extra[i]: more flags of host i."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    fields = FIELDS | {
        "data": records,
        "tokenizer": tokenizer_folder,
        "model": models["qwen2"],
        "batch.groups": 6,
        "logits_chunk": 64,
        "log.tensorboard": False,
        "rows.per_device": 1,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
        "distributed.coordinator": f"127.0.0.1:{port}",
        "distributed.num_processes": len(workdirs),
    }
    flags = ["--config=configs/tiny_cpu.py", *(f"--config.{name}={value}" for name, value in fields.items())]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "launch/train.py", *flags),
                *(f"--config.distributed.process_id={i}", f"--workdir={workdir}", *(extra[i] if extra else ())),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, workdir in enumerate(workdirs)
    ]


def finish(processes, timeout=600):
    """(exit code, stderr) of each; none is left behind."""
    try:
        return [(p.returncode, err) for p in processes for err in [p.communicate(timeout=timeout)[1]]]
    finally:
        for p in processes:
            p.kill()


def lines(workdir):
    path = Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_sigterm_to_one_host_stops_both_at_one_step_and_one_device_goes_on(
    tmp_path, records, tokenizer_folder, models, run
):
    """Trained on fsdp=2 x tensor=2 over two processes, restored on one device: the run that one device makes alone."""
    processes = start_hosts(
        records, tokenizer_folder, models, [tmp_path / "run"] * 2, [], ["--exit_code_if_stopped=75"]
    )
    deadline = time.monotonic() + 600
    while len(lines(tmp_path / "run")) < 2 and all(p.poll() is None for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    ends = finish(processes)
    assert [code for code, _ in ends] == [0, 75], ends[0][1][-2000:] + ends[1][1][-2000:]
    checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    (step,) = checkpoints.steps()
    checkpoints.close()
    assert 2 <= step < 60
    assert len(lines(tmp_path / "run")) == step

    _, resumed = run(tmp_path / "run", **FIELDS)
    _, alone = run(tmp_path / "alone", **FIELDS)
    assert [x["step"] for x in resumed] == list(range(1, 61))
    np.testing.assert_allclose([x["loss"] for x in resumed], [x["loss"] for x in alone], rtol=5e-3)
    np.testing.assert_allclose(resumed[0]["grad_norm"], alone[0]["grad_norm"], rtol=1e-4)


@pytest.mark.parametrize(
    ("own_workdir", "extra", "words"),
    [
        (
            False,
            ["--config.seed=7", "--config.beta.small=0.3"],
            ["beta.small (hosts [0] / [1]; 0.", "seed (hosts [0] / [1]", "differs between hosts"],
        ),
        (True, [], ["--workdir: ", "hosts [1] don't see it"]),
    ],
)
def test_hosts_that_do_not_run_the_same_are_refused_on_both(
    tmp_path, records, tokenizer_folder, models, own_workdir, extra, words
):
    workdirs = [tmp_path / "a", tmp_path / ("b" if own_workdir else "a")]
    ends = finish(start_hosts(records, tokenizer_folder, models, workdirs, [], extra))
    assert [code for code, _ in ends] == [2, 2]
    for _, err in ends:
        last = [line for line in err.splitlines() if line.startswith("error: ")][-1]
        assert all(word in last for word in words), last


def test_the_watchdog_names_host_step_and_what_it_waits_for(capfd):
    with Watchdog(0.05) as watchdog:
        watchdog.at(7, "the next step")
        deadline = time.monotonic() + 5
        said = ""
        while "watchdog" not in said and time.monotonic() < deadline:
            time.sleep(0.02)
            said += capfd.readouterr().err
    assert f"host 0 ({socket.gethostname()})" in said
    assert "7 steps are done, then: the next step" in said
