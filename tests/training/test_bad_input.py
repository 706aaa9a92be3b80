"""What launch/train.py refuses: exit code 2 and one line that names the field."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.records import Group, Pair, Response, write_data
from cogpo_jax.training import settings
from cogpo_jax.training.train import train

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "launch" / "train.py"), f"--config={ROOT / 'configs' / 'tiny_cpu.py'}"]


def command(*flags):
    return subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=200, cwd=ROOT)


def test_the_command_says_one_line_and_exits_with_2(tmp_path, records, tokenizer_folder):
    data = [f"--config.data={records}", f"--config.tokenizer={tokenizer_folder}", f"--workdir={tmp_path / 'run'}"]
    for flags, words in (
        ([*data, "--config.bata.small=1"], "config.bata.small: no such config field"),
        ([*data, "--config.beta.small=0"], "beta.small: 0.0: must be above 0"),
        ([*data, "--config.rows.length=ten"], "rows.length"),
        (data[:2], "--workdir: missing"),
        ([*data, "--config.rows.length=20"], "rows.length: 20: leaves nothing to train on"),
    ):
        result = command(*flags)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        line = result.stderr.splitlines()[-1]
        assert line.startswith("error: ")
        assert words in line
        if "leaves nothing" not in words:
            assert len(result.stderr.splitlines()) == 1, result.stderr
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objective": "ppo"}, r"objective: 'ppo': must be one of sft, cogpo, dpo"),
        ({"beta.large": -0.5}, r"beta.large: -0.5: must be above 0"),
        ({"beta.default": float("nan")}, r"beta.default: nan: must be above 0"),
        ({"batch.groups": 0}, r"batch.groups: 0: must be at least 1"),
        ({"rows.per_device": 0}, r"rows.per_device: 0: must be at least 1"),
        ({"loss.label_smoothing": 0.6}, r"loss.label_smoothing: 0.6: must be at least 0 and at most 0.5"),
        ({"optimizer.learning_rate": -1.0}, r"optimizer.learning_rate: -1.0: must be at least 0"),
        ({"optimizer.learning_rate": float("nan")}, r"optimizer.learning_rate: nan"),
        ({"reference": "none"}, r"reference: 'none': must be one of cached, live"),
        ({"remat": "some"}, r"remat: 'some'"),
        ({"data": ""}, r"data: empty: must be a folder of shards"),
        ({"tokenizer": ""}, r"tokenizer: empty"),
        ({"model": ""}, r"init_from: empty"),
        ({"epochs": 0}, r"epochs: 0: must be at least 1, or max_steps set"),
        ({"profile.steps": "3"}, r"profile.steps: '3': must be first:stop"),
        ({"profile.steps": "5:5"}, r"profile.steps: '5:5': must be first:stop with first below stop"),
        ({"text.prompt": "poem"}, r"text.prompt: 'poem'"),
    ],
    ids=str,
)
def test_a_config_is_refused_before_jax_is_needed(make_config, fields, words):
    with pytest.raises(UserError, match=words):
        settings.check(make_config(**fields))


def flipped(folder, byte=200):
    (shard,) = sorted(folder.glob("groups/groups-train.*"))[:1]
    data = bytearray(shard.read_bytes())
    data[byte] ^= 1
    shard.write_bytes(data)


def truncated(folder):
    (shard,) = sorted(folder.glob("groups/groups-train.*"))[:1]
    shard.write_bytes(shard.read_bytes()[:-30])


def other_manifest(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    shard = next(name for name in manifest["shards"] if "groups-train" in name)
    manifest["shards"][shard]["records"] += 1
    manifest["shards"][shard]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [flipped, truncated, other_manifest])
def test_damaged_records_are_named_before_any_work(tmp_path, run, write_records, damage):
    data = write_records(tmp_path / "data")
    damage(data)
    with pytest.raises(UserError, match="groups-train"):
        run(tmp_path / "run", data=str(data))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": "{tmp}/nothing"}, "nothing"),
        ({"tokenizer": "{tmp}"}, "has no tokenizer.json"),
        ({"model": "{tmp}/no.json"}, r"no.json"),
        ({"init_from": "{tmp}"}, "must be a Hugging Face folder or the workdir of an earlier run"),
        ({"eval.data": "{tmp}/nothing"}, "nothing"),
        ({"mesh.tensor": 3}, "mesh"),
        ({"rows.length": 150, "rows.per_device": 1}, r"rows.per_device: 1: \d+ pairs need two rows of 150"),
        ({"rows.length": 30}, r"rows.length: 30: leaves nothing to train on \(dropped: .*response_longer_than_row"),
    ],
    ids=str,
)
def test_what_the_run_needs_is_checked_before_any_work(tmp_path, run, fields, words):
    fields = {k: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v for k, v in fields.items()}
    with pytest.raises(UserError, match=words):
        run(tmp_path / "run", **fields)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_tokenizer_larger_than_the_student_is_refused(tmp_path, run, models):
    model = json.loads(Path(models["qwen2"]).read_text()) | {"vocab_size": 300}
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(UserError, match=r"tokenizer: .*: has 320 tokens, the student's vocab_size is 300"):
        run(tmp_path / "run", model=str(tmp_path / "model.json"))


RESPONSES = tuple(
    Response(f"r{i}", "", "teacher", "", "thought", f"solution {i}", "", kind, "")
    for i, kind in enumerate(("suitable", "easy", "incorrect"))
)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (Pair(1, 1, "none"), "a response cannot be preferred to itself"),
        (Pair(0, 2, "small"), r"gap: small: its rejected response is incorrect, must be easy or hard"),
        (Pair(0, 3, "large"), r"rejected: 3: must be an index into the 3 responses"),
        (Pair(0, 2, "large", beta=0.0), r"beta: 0.0: must be above 0"),
        (Pair(0, 2, "huge"), r"gap: 'huge'"),
    ],
    ids=str,
)
def test_pairs_that_make_no_sense_cannot_even_be_written(tmp_path, pair, words):
    group = Group("p", "", "Why?", "", RESPONSES, (pair,))
    with pytest.raises(UserError, match=words):
        write_data(tmp_path, groups={"train": [group]})


def test_a_run_error_exits_with_1_and_one_line(tmp_path, make_config, capsys):
    config = make_config(**{"optimizer.learning_rate": 1e36, "optimizer.clip_norm": 0.0, "optimizer.warmup_ratio": 0.0})
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: train(config, tmp_path) and None, ["train"])
    assert stopped.value.code == 1
    assert "not finite" in capsys.readouterr().err.splitlines()[-1]
