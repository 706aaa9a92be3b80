"""Tiny runs of the real trainer: records, a tokenizer, students of two layers, and programs compiled once a session."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from cogpo_jax.configs import tiny_cpu
from cogpo_jax.records import Group, Pair, Response, SftExample, write_data
from cogpo_jax.sharding import make_mesh
from cogpo_jax.text import train_tokenizer
from cogpo_jax.training import setup, step
from cogpo_jax.training.train import train

ROOT = Path(__file__).parents[2]
WORDS = "add the two numbers then half of them is a prime so we know that seven plus five makes twelve"
SMALL = {
    "model_type": "qwen2",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
STUDENTS = {
    "qwen2": SMALL,
    "qwen3": SMALL | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False, "num_hidden_layers": 1},
}


def triangle(number, rng):
    """One problem: a suitable, an unsuitable and a wrong response, and the three pairs between them."""
    kinds = ("suitable", ("easy", "hard")[number % 2], "incorrect")
    texts = [" ".join(rng.choice(WORDS.split(), rng.integers(3, 16))) for _ in kinds]
    responses = tuple(
        Response(f"{number}-{i}", "", "teacher", "", f"{text} {i}", f"The answer is {number}.", "", kind, "")
        for i, (kind, text) in enumerate(zip(kinds, texts, strict=True))
    )
    pairs = (Pair(0, 1, "small"), Pair(1, 2, "medium"), Pair(0, 2, "large", beta=0.3 if number % 5 == 0 else np.nan))
    prompt = f"What is {number} plus {' '.join(rng.choice(WORDS.split(), 4))}?"
    return Group(f"problem-{number}", "", prompt, str(number), responses, pairs)


def as_sft(group):
    r = group.responses[0]
    return SftExample(
        group.problem_id, "", group.prompt, r.thought, r.solution, "", group.answer, "medium", "", id=r.id
    )


@pytest.fixture(scope="session")
def write_records():
    """write_records(folder, first=0, count=18): triangles `first`.. with their SFT examples, 6 more held out."""

    def write(folder, first=0, count=18):
        rng = np.random.default_rng(first)
        groups = [triangle(first + i, rng) for i in range(count + 6)]
        split = {"train": groups[:count], "validation": groups[count:]}
        write_data(folder, sft={k: map(as_sft, v) for k, v in split.items()}, groups=split, shards=2)
        return Path(folder)

    return write


@pytest.fixture(scope="session")
def records(tmp_path_factory, write_records):
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([f"{a} {b} The answer is" for a in WORDS.split() for b in WORDS.split()], folder, 320)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """{name: path of a config.json}."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in STUDENTS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return {name: str(folder / f"{name}.json") for name in STUDENTS}


@pytest.fixture
def make_config(records, tokenizer_folder, models):
    """make_config(**{"rows.length": 64}): configs/tiny_cpu.py for the tiny records, with these fields."""

    def make(**fields):
        config = tiny_cpu.get_config()
        fields = {
            "data": str(records),
            "tokenizer": str(tokenizer_folder),
            "model": models["qwen2"],
            "batch.groups": 6,
            "rows.length": 192,
            "rows.per_device": 4,
            "rows.shapes": 1,
            "optimizer.learning_rate": 1e-2,
            "checkpoint.every": 1,
            "logits_chunk": 64,
            "log.tensorboard": False,
        } | fields
        config.update_from_flattened_dict(fields)
        return config

    return make


@pytest.fixture(scope="session")
def _programs():
    return {}


@pytest.fixture(autouse=True)
def one_device(monkeypatch, _programs):
    """Runs see one device, and runs that compile the same programs share them."""
    monkeypatch.setattr(setup, "make_mesh", lambda sizes: make_mesh(sizes, jax.devices()[:1]))

    def make_programs(settings, optimizer, params, opt_state):
        # The optimizer differs with the config: only the programs without it are shared.
        if settings not in _programs:
            _programs[settings] = step.make_programs(settings, optimizer, params, opt_state)
        fresh, shared = step.make_programs(settings, optimizer, params, opt_state), _programs[settings]
        return step.Programs(shared.accumulate, fresh.apply, shared.score, shared.start)

    monkeypatch.setattr(setup, "make_programs", make_programs)


@pytest.fixture
def run(make_config):
    """run(workdir, **fields) -> (done.json's content, metrics lines)."""

    def call(workdir, **fields):
        done = train(make_config(**fields), workdir)
        return done, [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]

    return call
