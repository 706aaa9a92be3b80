"""Runs of the real trainer: killed, stopped, damaged or poisoned, and what they leave."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cogpo_jax.errors import RunError, UserError
from cogpo_jax.training import hosts
from cogpo_jax.training.checkpoint import Checkpoints
from cogpo_jax.training.train import train

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "tokens_per_second", "goodput", "memory_bytes", "model_flops_per_second", "mfu")


def without_times(lines):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def lines_of(workdir, name="metrics.jsonl"):
    path = Path(workdir) / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def arrays(workdir, step=None):
    """The raw arrays of a checkpoint, and its step; on whatever one device there is."""
    checkpoints = Checkpoints(workdir, read_only=True)
    step = step or checkpoints.steps()[-1]
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = {}
    for item in ("params", "opt_state"):
        tree = checkpoints.structure(item, step)
        found[item] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), tree)
    step, items, _ = checkpoints.restore(found, step)
    return step, {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(items)}


def assert_same_state(a, b):
    (step_a, arrays_a), (step_b, arrays_b) = arrays(a), arrays(b)
    assert step_a == step_b
    assert arrays_a.keys() == arrays_b.keys()
    for name, value in arrays_a.items():
        np.testing.assert_array_equal(value, arrays_b[name], err_msg=name)


@pytest.fixture
def command(records, tokenizer_folder, models):
    """command(workdir, **fields) -> the argument list of launch/train.py on one CPU device."""

    def make(workdir, **fields):
        fields = {
            "data": records,
            "tokenizer": tokenizer_folder,
            "model": models["qwen2"],
            "batch.groups": 6,
            "rows.length": 192,
            "rows.shapes": 1,
            "optimizer.learning_rate": 1e-2,
            "logits_chunk": 64,
            "log.tensorboard": False,
        } | fields
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        config = f"--config={ROOT / 'configs' / 'tiny_cpu.py'}"
        return [sys.executable, str(ROOT / "launch" / "train.py"), config, f"--workdir={workdir}", *flags]

    return make


ONE_CPU = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}


def start_until(command, workdir, lines):
    """Starts a run and returns its process as soon as its metrics have so many lines."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_CPU)
    deadline = time.monotonic() + 200
    while len(lines_of_text(workdir)) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def lines_of_text(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def test_killed_and_stopped_runs_go_on_bit_equal(tmp_path, command):
    """kill -9, then SIGTERM, then the same command to the end: nothing differs from a run that nobody touched."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fields = {"epochs": 8, "checkpoint.every": 3, "reference_cache.dir": tmp_path / "reference"}
    done = subprocess.run(command(whole, **fields), capture_output=True, text=True, env=ONE_CPU, timeout=280)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 24

    killed = start_until(command(broken, **fields), broken, 7)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    stopped = start_until(command(broken, **fields), broken, 13)
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate(timeout=200)
    assert stopped.returncode == 0, err
    result = json.loads(out)
    if not result["finished"]:
        assert "the same command goes on from there" in err
        assert result["step"] in Checkpoints(broken, read_only=True).steps()
    last = subprocess.run(command(broken, **fields), capture_output=True, text=True, env=ONE_CPU, timeout=200)
    assert last.returncode == 0, last.stderr
    assert "goes on after step" in last.stderr

    assert without_times(lines_of(broken)) == without_times(lines_of(whole))
    assert [line["step"] for line in lines_of(broken)] == list(range(1, 25))
    assert_same_state(broken, whole)


def test_sigterm_before_training_stops_in_order_and_nothing_is_lost(tmp_path, command, run):
    fields = {"epochs": 1, "checkpoint.every": 1}
    process = subprocess.Popen(
        command(tmp_path, **fields), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_CPU
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "config.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert json.loads(out)["finished"] is False
    assert err.splitlines()[-1].endswith("nothing is lost, the same command goes on from there")
    assert "Traceback" not in err
    assert not lines_of(tmp_path)
    done, metrics = run(tmp_path, **fields)
    assert (done["finished"], len(metrics)) == (True, 3)


def test_a_run_asked_to_leave_at_any_micro_batch_goes_on_as_if_it_had_not_been(
    tmp_path, run, make_config, records, monkeypatch
):
    """Stopped again and again, in the reference pass, in steps and in evaluations: the same in the end."""
    fields = {"eval.data": str(records), "eval.every": 1, "rows.length": 96, "batch.groups": 9}
    _, whole = run(tmp_path / "whole", **fields)
    most, left = itertools.cycle((7, 9, 8)), []  # a step is 6 micro-batches, an evaluation 5

    class Limited(hosts.Leaving):
        """Asked to leave after so many micro-batches."""

        def __init__(self):
            super().__init__()
            self.due_at = next(most)

        def tick(self):
            self._ticks += 1
            self.due = self._ticks > self.due_at
            return self.due

    monkeypatch.setattr(hosts, "Leaving", Limited)
    done = {"finished": False}
    while not done["finished"] and len(left) < 30:
        done = train(make_config(**fields), tmp_path / "pieces")
        left.append(done["step"])
    assert done["finished"]
    assert left.count(0) >= 2
    assert left.count(1) >= 2
    assert left.count(2) >= 2  # all steps were done, and the last evaluation took another run
    assert without_times(lines_of(tmp_path / "pieces")) == without_times(whole)
    for name in ("eval.jsonl", "eval_pairs.jsonl"):
        assert lines_of(tmp_path / "pieces", name) == lines_of(tmp_path / "whole", name)
    assert_same_state(tmp_path / "pieces", tmp_path / "whole")


def test_max_steps_may_not_change_a_schedule_that_it_is_the_length_of(tmp_path, run):
    run(tmp_path, epochs=0, max_steps=2)
    with pytest.raises(UserError, match=r"another config: optimizer.schedule_steps \(2 there, 3 here\)"):
        run(tmp_path, epochs=0, max_steps=3)
    done, metrics = run(tmp_path, epochs=0, max_steps=3, **{"optimizer.schedule_steps": 2})
    assert done["step"] == 3
    assert metrics[2]["learning_rate"] == 0  # the schedule of two steps has ended


def test_all_bfloat16_training_moves_by_stochastic_rounding_and_resumes_to_the_bit(tmp_path, run):
    """Norms are 1, and an update of 1e-3 is less than half of bfloat16's spacing there: to nearest, none would move."""
    fields = {
        "param_dtype": "bfloat16",
        "compute_dtype": "bfloat16",
        "optimizer.learning_rate": 1e-3,
        "optimizer.schedule": "constant",
        "optimizer.warmup_ratio": 0.0,
    }
    run(tmp_path / "whole", **fields)
    for steps in (1, 3):
        run(tmp_path / "pieces", **fields, max_steps=steps)
    assert_same_state(tmp_path / "pieces", tmp_path / "whole")
    _, found = arrays(tmp_path / "whole")
    norms = [x for name, x in found.items() if name.startswith("['params']") and "norm" in name]
    assert all(x.dtype == "bfloat16" for x in norms)
    assert len(norms) == 3
    for x in norms:
        assert 0.1 < (x != 1).mean() < 0.9


def test_a_profile_of_the_chosen_steps_is_written(tmp_path, run):
    _, metrics = run(tmp_path, **{"profile.steps": "1:2"})
    assert len(metrics) == 3
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"micro_step" in trace.read_bytes()  # the program that the profiled step ran
    assert b"attention" in trace.read_bytes()


def test_a_run_in_pieces_equals_one_in_one_piece(tmp_path, run):
    _, whole = run(tmp_path / "whole", epochs=2)
    for steps in (1, 3, 4, 6):
        _, pieces = run(tmp_path / "pieces", epochs=2, max_steps=steps)
    assert without_times(pieces) == without_times(whole)
    assert_same_state(tmp_path / "pieces", tmp_path / "whole")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def three_steps(run, finished, tmp_path):
    """A copy of a workdir with three steps done and the checkpoints of all of them."""
    if not (finished / "done.json").is_file():
        run(finished, **{"checkpoint.keep": 3})
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_damaged_checkpoint_is_trained_again_from_the_one_before(three_steps, finished, run, capsys):
    part = max((three_steps / "checkpoints" / "3" / "params" / "d").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 4
    part.write_bytes(data)
    _, metrics = run(three_steps, **{"checkpoint.keep": 3})
    said = capsys.readouterr().err
    assert "damaged checkpoint" in said
    assert "checkpoint of step 2 is used instead" in said
    assert without_times(metrics) == without_times(lines_of(finished))
    assert_same_state(three_steps, finished)


def test_a_finished_run_does_nothing_more(three_steps, run):
    before = (three_steps / "metrics.jsonl").read_text()
    done, _ = run(three_steps, **{"checkpoint.keep": 3})
    assert done["step"] == 3
    assert (three_steps / "metrics.jsonl").read_text() == before


def test_a_workdir_of_another_config_is_refused_by_field(three_steps, run):
    with pytest.raises(UserError, match=r"another config: beta.small \(0.1 there, 0.3 here\), seed \(0 there"):
        run(three_steps, **{"beta.small": 0.3, "seed": 1})
    with pytest.raises(UserError, match=r"objective \('cogpo' there, 'dpo' here\)"):
        run(three_steps, objective="dpo")


def test_records_that_changed_since_the_run_began_are_refused(tmp_path, run, write_records, monkeypatch):
    data = write_records(tmp_path / "data", first=40)
    run(tmp_path / "run", data=str(data), max_steps=1)
    write_records(tmp_path / "data", first=41)
    with pytest.raises(UserError, match=r"data: .*: its token ids changed since this run began"):
        run(tmp_path / "run", data=str(data), max_steps=2)


def test_a_number_that_is_not_finite_stops_the_run_and_names_the_groups(tmp_path, run):
    with pytest.raises(RunError) as error:
        run(tmp_path, **{"optimizer.learning_rate": 1e36, "optimizer.clip_norm": 0.0, "optimizer.warmup_ratio": 0.0})
    message = str(error.value)
    assert "step 2: loss nan" in message
    assert "last good checkpoint: step 1" in message
    assert message.count("problem-") == 6
    assert Checkpoints(tmp_path, read_only=True).steps() == [1]


def test_a_reference_cache_serves_a_beta_sweep(tmp_path, run, capsys):
    shared = {"reference_cache.dir": str(tmp_path / "cache"), "max_steps": 3}
    run(tmp_path / "first", **shared)
    assert "reference, training:" in capsys.readouterr().err
    _, metrics = run(tmp_path / "second", **shared, **{"beta.small": 0.3})
    assert "reference, training:" not in capsys.readouterr().err
    assert metrics[0]["margin"]["all"] == 0


def test_a_reference_that_drifted_is_refused(tmp_path, run):
    run(tmp_path / "first", max_steps=1, **{"reference_cache.dir": str(tmp_path / "cache")})
    (part,) = tmp_path.glob("cache/*/part-*.npy")
    entries = np.load(part)
    entries["logp"] += 5
    part.unlink()
    from cogpo_jax.training.scoring import ReferenceCache

    cache = ReferenceCache(tmp_path / "cache", json.loads((part.parent / "meta.json").read_text()))
    digests = np.frombuffer(b"".join(d.ljust(16, b"\0") for d in entries["digest"]), np.uint8).reshape(-1, 16)
    cache.add(digests, entries["logp"], entries["tokens"])
    with pytest.raises(UserError, match=r"max_drift: 1.0: cached log-probs differ from live ones by 5 nats"):
        run(tmp_path / "second", max_steps=1, **{"reference_cache.dir": str(tmp_path / "cache")})


def test_held_out_pairs_start_at_a_margin_of_zero_and_are_scored(tmp_path, run, records):
    done, _ = run(tmp_path, max_steps=2, **{"eval.data": str(records), "eval.every": 1})
    rows, evaluations = lines_of(tmp_path, "eval_pairs.jsonl"), lines_of(tmp_path, "eval.jsonl")
    assert [e["step"] for e in evaluations] == [1, 2]
    assert done["evaluation"] == evaluations[-1]
    assert len(rows) == 18
    margins = [r["chosen_logp"] - r["chosen_ref_logp"] - r["rejected_logp"] + r["rejected_ref_logp"] for r in rows]
    np.testing.assert_allclose(np.mean(margins), evaluations[-1]["margin"]["all"], rtol=1e-5)
    assert {r["beta"] for r in rows if r["gap"] == "large"} == {0.5, 0.3}  # the config's, its own
    losses = np.logaddexp(0, [-r["beta"] * margin for r, margin in zip(rows, margins, strict=True)])
    np.testing.assert_allclose(losses.mean(), evaluations[-1]["loss"]["all"], rtol=1e-5)


def test_sft_learns_and_counts_response_tokens(tmp_path, run, records):
    done, metrics = run(tmp_path, objective="sft", epochs=6, **{"eval.data": str(records)})
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.5
    assert done["evaluation"]["heldout_nll"] < done["evaluation"]["unigram_nll"] + 1
    assert metrics[0]["groups"] == 6
    assert "margin" not in metrics[0]
    assert 0 < metrics[0]["response_tokens"] < metrics[0]["tokens"]


def test_a_metrics_line_says_how_fast_and_how_well(three_steps):
    """Every field of docs/training.md's table is there, and no other."""
    lines = lines_of(three_steps)
    table = (ROOT / "docs" / "training.md").read_text().split("## A line of metrics.jsonl")[1].split("\n## ")[0]
    described = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    by_gap = {name for name, value in lines[1].items() if isinstance(value, dict)}
    assert lines[1].keys() | {"mfu"} == described  # mfu: on devices whose peak is known
    assert by_gap == set(re.findall(r"^\| `(\w+)` \(by gap\)", table, re.MULTILINE))
    for name in by_gap:
        assert lines[1][name].keys() == {"small", "medium", "large", "all"}
    for line in lines:
        assert 1 < line["attention_excess"] < 20  # rows of 192 in tiles of 128, segments of 70
        assert 0 < line["goodput"] < 1
        assert 10**7 < line["memory_bytes"] < 10**11
        np.testing.assert_allclose(line["tokens_per_second"], line["tokens"] / line["seconds"], rtol=1e-6)
        assert line["model_flops"] > 6 * 20_000 * line["tokens"]
        assert line["repeated_responses"] == 0
    assert lines[1]["kl"]["all"] > 0
