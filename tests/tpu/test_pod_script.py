"""launch/tpu_pod.sh against a gcloud that runs the remote commands here, as two workers."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GCLOUD = """#!/bin/bash
echo "$@" >> "$CALLS"
asked=$(grep -c "queued-resources describe" "$CALLS")
case "$*" in
  *"tpu-vm describe"*) case $asked in 0 | 1) false ;; 2) echo "$POD" ;; *) echo READY ;; esac; exit ;;
  *"queued-resources describe"*) [ "$asked" -gt 1 ] && echo "$POD" || echo WAITING
esac
for word in "$@"; do
  case $word in --command=*)
    status=0
    for worker in 0 1; do (cd "$HOME" && WORKER=$worker bash -c "${word#--command=}") || status=$?; done
    exit $status
  esac
done
"""


@pytest.fixture
def pod(tmp_path):
    """pod(*arguments) -> finished process; tmp_path/home is both workers' home, tmp_path/calls what gcloud was told."""
    (tmp_path / "home" / "cogpo-jax").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    own = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "CALLS": str(tmp_path / "calls"),
    }

    def run(*arguments):
        return subprocess.run(
            ["sh", ROOT / "launch" / "tpu_pod.sh", *arguments], env=os.environ | own, capture_output=True, text=True
        )

    return run


def test_run_hands_each_word_to_every_worker_as_it_was_given(pod, tmp_path):
    done = pod("run", "my-pod", "us-east5-a", "printf", "%s|", "a b", "it's", "$HOME", "--config.system=x;y")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("a b|it's|$HOME|--config.system=x;y|") == 2
    assert (tmp_path / "home" / "run.log").read_text() == done.stdout
    assert "tpu-vm ssh my-pod --zone=us-east5-a --worker=all" in (tmp_path / "calls").read_text()


def test_a_command_that_fails_on_the_workers_fails_here(pod):
    assert pod("run", "my-pod", "us-east5-a", "sh", "-c", "exit 3").returncode == 3


@pytest.mark.parametrize("arguments", [(), ("run", "my-pod", "zone"), ("fly", "my-pod", "zone")])
def test_a_wrong_call_prints_how_and_exits_2(pod, arguments):
    done = pod(*arguments)
    assert done.returncode == 2
    assert "launch/tpu_pod.sh run" in done.stdout


def test_an_unknown_accelerator_is_refused(pod):
    done = pod("up", "my-pod", "zone", "h100-8")
    assert (done.returncode, "h100-8: known accelerator types" in done.stderr) == (2, True)


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_up_ends_where_the_pod_will_never_be_there(pod, monkeypatch, state):
    monkeypatch.setenv("POD", state)
    monkeypatch.setenv("POLL_SECONDS", "0")
    done = pod("up", "my-pod", "zone", "v5p-32")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "waiting for my-pod (WAITING)"
    assert f"my-pod: its queued resource is {state}" in done.stderr.splitlines()[-1]


def test_up_waits_until_the_pod_is_ready(pod, monkeypatch, tmp_path):
    monkeypatch.setenv("POD", "READY")
    monkeypatch.setenv("POLL_SECONDS", "0")
    assert pod("up", "my-pod", "zone", "v5p-32").returncode == 0
    assert "queued-resources create my-pod" in (tmp_path / "calls").read_text()


def test_the_job_set_is_yaml_and_runs_the_train_command():
    job = yaml.safe_load((ROOT / "launch" / "tpu_jobset.yaml").read_text())
    (replicated,) = job["spec"]["replicatedJobs"]
    pods = replicated["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "launch/train.py", "--config=configs/cogpo_tpu.py:7b"]
    chips = pods["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert chips == 2 * 2 * 4
