"""What joins the trainer to the world: betas from record to metrics, one writer, folders, paths, hosts."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from cogpo_jax.atomic import FolderLock, check_writable
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.training import hosts, log, scoring, settings
from cogpo_jax.training import setup as set_up
from cogpo_jax.training.checkpoint import export_checkpoint
from cogpo_jax.training.settings import resolve_beta
from cogpo_jax.training.train import train

BETA = {"small": 0.1, "medium": 0.2, "large": 0.5, "default": 0.7}
GAPS = np.array([0, 1, 2, 3, 2])
OWN = np.array([np.nan, np.nan, np.nan, np.nan, 0.3], np.float32)


def test_a_pair_has_its_own_beta_else_its_gaps():
    np.testing.assert_array_equal(resolve_beta("cogpo", BETA, GAPS, OWN), np.float32([0.1, 0.2, 0.5, 0.7, 0.3]))


def test_dpo_has_one_beta_whatever_the_records_say():
    np.testing.assert_array_equal(resolve_beta("dpo", BETA, GAPS, OWN), np.full(5, np.float32(0.7)))


@pytest.mark.parametrize("objective", ["cogpo", "dpo"])
def test_the_beta_of_the_metrics_and_of_the_evaluation_is_the_one_that_the_step_uses(tmp_path, run, records, objective):
    """Two real steps: reward_margin = beta x margin by gap in metrics.jsonl; the same betas in eval_pairs.jsonl."""
    fields = {
        "objective": objective,
        "beta.default": 0.7,
        "beta.small": 0.15,
        "max_steps": 2,
        "eval.data": str(records),
    }
    _, lines = run(tmp_path, **fields)
    want = {"small": 0.15, "medium": 0.2} if objective == "cogpo" else dict.fromkeys(("small", "medium", "large"), 0.7)
    for gap, beta in want.items():
        assert lines[1]["margin"][gap] != 0
        np.testing.assert_allclose(lines[1]["reward_margin"][gap], beta * lines[1]["margin"][gap], rtol=1e-5)
    rows = [json.loads(line) for line in (tmp_path / "eval_pairs.jsonl").read_text().splitlines()]
    large = {r["beta"] for r in rows if r["gap"] == "large"}
    assert large == ({0.5, 0.3} if objective == "cogpo" else {0.7})  # the config's, and a record's own
    assert {r["beta"] for r in rows if r["gap"] in want} == set(want.values())


def test_a_second_writer_is_refused_naming_the_first_and_a_dead_one_is_no_obstacle(tmp_path):
    holder = textwrap.dedent(f"""
        import sys
        from cogpo_jax.atomic import FolderLock, check_writable
        with FolderLock({str(tmp_path)!r}):
            print("held", flush=True)
            sys.stdin.read()
    """)
    first = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"in use by process {first.pid} on .*, since 20\d\d-"), FolderLock(tmp_path):
        pass
    first.kill()
    first.wait()
    with FolderLock(tmp_path):
        pass


def test_train_is_refused_where_another_trains(tmp_path, make_config):
    with FolderLock(tmp_path), pytest.raises(UserError, match=rf"in use by process {os.getpid()}"):
        train(make_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


@pytest.fixture
def bucket(monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, MemoryFileSystem, clobber=True)
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(FolderLock, "SETTLE", 0.0)
    return "gs://bucket/run"


def test_in_an_object_store_a_lease_is_refused_while_it_is_renewed_and_taken_when_it_is_not(bucket, monkeypatch):
    with FolderLock(bucket):
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()}"), FolderLock(bucket):
            pass
        monkeypatch.setattr(FolderLock, "STALE", -1.0)  # as if nobody had renewed it for long
        with FolderLock(bucket):
            pass
    monkeypatch.setattr(FolderLock, "STALE", 180.0)
    with FolderLock(bucket):
        pass


def test_a_lease_of_a_dead_process_of_this_host_is_no_obstacle(bucket):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = FolderLock(bucket)
    lock._mine["pid"] = dead.pid
    lock._write_lease()
    with FolderLock(bucket):
        pass


def test_nothing_is_exported_over_or_into_or_around_the_run(tmp_path, run):
    run(tmp_path / "runs" / "a", max_steps=1)
    before = sorted(p.name for p in (tmp_path / "runs" / "a").iterdir())
    for output in ("runs/a", "runs", ".", "runs/a/hf", "runs/../runs/a"):
        with pytest.raises(UserError, match="must be apart from the run"):
            export_checkpoint(str(tmp_path / "runs" / "a"), str(tmp_path / output), overwrite=True)
    assert sorted(p.name for p in (tmp_path / "runs" / "a").iterdir()) == before


def test_a_run_goes_on_however_its_paths_are_spelled_and_wherever_its_data_lies(tmp_path, run, records, monkeypatch):
    (tmp_path / "data").symlink_to(records)
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run", data="data", max_steps=1)
    for data in ("data/", str(tmp_path / "data"), "./data", str(records)):
        done, _ = run(tmp_path / "run", data=data, max_steps=1)
        assert done["step"] == 1


def test_evaluations_on_other_slots_compile_their_program_once(tmp_path, run, records, monkeypatch):
    """On the programs as they are, not on the ones that the fixture of this folder shares."""
    from cogpo_jax.training import step

    monkeypatch.setattr(set_up, "make_programs", step.make_programs)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **more: compiled.append(more.get("fun_name", "")) if "jaxpr_to_mlir" in event else None
    )
    traced = []
    true_score = step.score
    monkeypatch.setattr(step, "score", lambda *args, **kw: traced.append(1) or true_score(*args, **kw))
    fields = {"eval.data": str(records), "eval.every": 1, "batch.groups": 3, "rows.length": 160}
    _, lines = run(tmp_path, **fields)
    assert len(lines) > 4
    # The step's own trace, the reference's, the held-out ones': however many evaluations there are.
    assert len(traced) <= 4, traced


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimizer.b1": 1.0}, r"optimizer.b1: 1.0: must be at least 0 and below 1"),
        ({"seed": 2**32}, r"seed: 4294967296: must be at least 0 and at most 4294967295"),
        ({"seed": -1}, r"seed: -1"),
        ({"optimizer.eps": float("nan")}, r"optimizer.eps: nan: must be at least 0"),
        ({"rows.shapes": 4}, r"rows.shapes: 4: must be at least 1 and at most 3"),
        ({"distributed.num_processes": -1}, r"distributed.num_processes: -1"),
        ({"init_from": "s3://bucket/run"}, r"init_from: s3://bucket/run: s3:// is not known"),
    ],
    ids=str,
)
def test_a_value_that_cannot_work_is_refused(make_config, fields, words):
    with pytest.raises(UserError, match=words):
        settings.check(make_config(**fields))


def test_a_section_given_as_a_text_and_an_empty_field_are_named(make_config):
    config = make_config()
    with config.ignore_type():
        config.mesh = "{'fsdp': 1}"
    with pytest.raises(UserError, match=r"mesh: \"{'fsdp': 1}\": must be given field by field, as --config.mesh"):
        settings.check(config)
    config = make_config()
    config.mesh = config_dict.ConfigDict({"fsdp": 1})  # as ml_collections reads --config.mesh="{'fsdp': 1}"
    with pytest.raises(UserError, match=r"mesh: {'fsdp': 1}: must be given field by field, as --config.mesh"):
        settings.check(config)
    config = make_config()
    with config.ignore_type():
        config.seed = "0"
    with pytest.raises(UserError, match=r"seed: '0': must be of type int"):
        settings.check(config)
    config = make_config()
    with config.ignore_type():
        config.optimizer.eps = None
    with pytest.raises(UserError, match=r"optimizer.eps: None: must have a value"):
        settings.check(config)


def test_a_workdir_that_is_a_file_or_a_model_is_refused(tmp_path, make_config, models):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--workdir: .*file: is a file"):
        train(make_config(), tmp_path / "file")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UserError, match=r"--workdir: .*model: is a model's folder"):
        train(make_config(), tmp_path / "model")


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}'])
def test_a_workdir_with_the_config_of_something_else_is_refused(tmp_path, make_config, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        train(make_config(), tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for path, words in (("link", "is a link to nothing"), ("file/run", "is no folder"), ("file", "is a file")):
        with pytest.raises(UserError, match=words):
            check_writable("--workdir", tmp_path / path)
    with pytest.raises(UserError, match="is a folder: give a file"):
        check_writable("--output", tmp_path, file=True)
    with pytest.raises(UserError, match="file:// is not known"):
        check_writable("--output", "file:///x", file=True)
    check_writable("--output", tmp_path / "new" / "file", file=True)


def test_weights_that_cannot_be_are_named_before_the_workdir_is_made(tmp_path, run, models, tokenizer_folder):
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(Path(models["qwen2"]).read_text())
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds neither .*save_pretrained makes them of pytorch_model.bin"):
        run(tmp_path / "run", init_from=str(folder))
    assert not (tmp_path / "run").exists()


def test_settings_that_mean_the_same_go_on_and_others_do_not(tmp_path, make_config):
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(make_config(objective="dpo").to_dict()))
    same = {"text.end_token": "", "text.template_kwargs": " {} ", "tokenizer": "/elsewhere", "beta.small": 0.3}
    for field, value in same.items():
        settings.check_same_run(make_config(**{"objective": "dpo", field: value}), saved)
    for field, value in {"seed": 1, "beta.default": 0.3, "text.end_token": "<|endoftext|>"}.items():
        with pytest.raises(UserError, match=field):
            settings.check_same_run(make_config(**{"objective": "dpo", field: value}), saved)


def test_a_home_folder_is_expanded(tmp_path, make_config, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.resolved(make_config(data="~/x")).data == str(tmp_path / "x")
    assert str(settings.folder("--workdir", "~/run")) == str(tmp_path / "run")


def test_rows_beyond_the_students_positions_are_refused(tmp_path, run, models):
    model = json.loads(Path(models["qwen2"]).read_text()) | {"max_position_embeddings": 64}
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(UserError, match=r"rows.length: 192: the student has 64 positions"):
        run(tmp_path / "run", model=str(tmp_path / "model.json"))


def test_held_out_data_that_does_not_fit_is_named_as_such(tmp_path, run):
    with pytest.raises(UserError, match=r"eval.data: .*nothing"):
        run(tmp_path / "run", **{"eval.data": str(tmp_path / "nothing")})


def test_a_nan_s_line_is_written_before_the_run_ends(tmp_path, make_config, monkeypatch):
    """Also where lines are only uploaded now and then: closed in every exit."""
    fields = {"optimizer.learning_rate": 1e36, "optimizer.clip_norm": 0.0, "optimizer.warmup_ratio": 0.0}
    closed = []
    true_close = log.MetricsLog.close
    monkeypatch.setattr(log.MetricsLog, "close", lambda self: (closed.append(self), true_close(self)))
    with pytest.raises(RunError, match="not finite"):
        train(make_config(**fields), tmp_path)
    assert closed
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert not np.isfinite([last["loss"], last["grad_norm"]]).all()


def test_the_watchdog_knows_what_is_not_a_step(tmp_path, run, records, monkeypatch):
    doing = []
    true_at = hosts.Watchdog.at
    monkeypatch.setattr(hosts.Watchdog, "at", lambda self, step, what: (doing.append(what), true_at(self, step, what)))
    run(tmp_path, max_steps=2, **{"eval.data": str(records), "eval.every": 1})
    for what in ("the reference pass", "step 1", "the checkpoint of step 1", "the evaluation after step 1"):
        assert what in doing


def test_held_out_numbers_are_those_of_numpy():
    rows = [
        {"gap": "small", "beta": 0.1, "chosen_logp": -5.0, "chosen_ref_logp": -6.0, "rejected_logp": -9.0,
         "rejected_ref_logp": -8.0},
        {"gap": "large", "beta": 0.5, "chosen_logp": -5.0, "chosen_ref_logp": -4.0, "rejected_logp": -9.0,
         "rejected_ref_logp": -9.0},
    ]  # fmt: skip
    found = scoring.pair_summary(rows)
    margins, betas = np.array([2.0, -1.0]), np.array([0.1, 0.5])
    np.testing.assert_allclose(found["margin"]["all"], margins.mean())
    np.testing.assert_allclose(found["loss"]["all"], np.log1p(np.exp(-betas * margins)).mean())
    np.testing.assert_allclose(found["loss"]["large"], np.log1p(np.exp(0.5)))
    assert found["accuracy"] == {"small": 1.0, "large": 0.0, "all": 0.5}


def test_a_fault_on_the_first_process_is_raised(monkeypatch):
    def fault():
        raise UserError("workdir: in use")

    with pytest.raises(UserError, match="in use"):
        hosts.on_first(fault)
    assert hosts.all_agree(True)
    assert not hosts.all_agree(False)


def test_a_student_in_training_answers_problems_and_the_curve_stands_beside_the_losses(tmp_path, run):
    problems = tmp_path / "problems.jsonl"
    rows = [{"id": str(i), "problem": f"{i}+1?", "answer": str(i + 1)} for i in (1, 2)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"task": "math", "data": str(problems), "problems": 2, "every": 1, "max_tokens": 4}
    fields = {f"eval.generate.{name}": value for name, value in asked.items()}
    done, _ = run(tmp_path / "run", max_steps=2, **fields, **{"rows.length": 256})
    lines = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[1]["generate"] == done["evaluation"]["generate"]
    assert 0 <= lines[1]["generate"]["accuracy"] <= 1
    assert 0 < lines[1]["generate"]["tokens_mean"] <= 4


def test_problems_that_cannot_be_read_are_named_before_training(tmp_path, run):
    fields = {"eval.generate.task": "math", "eval.generate.data": str(tmp_path / "no.jsonl")}
    with pytest.raises(UserError, match=r"eval.generate: .*no.jsonl"):
        run(tmp_path / "run", **fields)
