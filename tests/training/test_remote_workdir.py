"""A workdir in an object store (here one in memory): the small files; orbax writes checkpoints there by itself."""

import json

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from cogpo_jax.training import train as train_module
from cogpo_jax.training.checkpoint import Checkpoints
from cogpo_jax.training.train import train


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """gs:// is memory; checkpoints, which go through tensorstore, and what belongs on local disk go to tmp_path."""
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, MemoryFileSystem, clobber=True)
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setenv("HOME", str(tmp_path))

    def checkpoints(workdir, *args, **kwargs):
        return Checkpoints(tmp_path / "remote" if "://" in str(workdir) else workdir, *args, **kwargs)

    monkeypatch.setattr(train_module, "Checkpoints", checkpoints)
    return "gs://bucket/run"


def test_a_run_in_an_object_store_is_the_run_on_disk(bucket, make_config, run, tmp_path):
    fields = {"epochs": 2, "checkpoint.every": 2}
    train(make_config(**fields, max_steps=3), bucket)
    done = train(make_config(**fields), bucket)
    _, local = run(tmp_path / "local", **fields)

    remote = epath.Path(bucket)
    lines = [json.loads(line) for line in (remote / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [x["step"] for x in local]
    np.testing.assert_array_equal([x["loss"] for x in lines], [x["loss"] for x in local])
    assert json.loads((remote / "done.json").read_text()) == done
    names = {path.name for path in remote.iterdir()}
    assert {"config.json", "plan.json", "student.json", "tokenizer", "reference_cache"} <= names
    assert "token_cache" not in names  # memory-mapped: stays on local disk
    assert (remote / "tokenizer" / "tokenizer.json").is_file()
