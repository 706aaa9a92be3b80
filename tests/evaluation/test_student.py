"""The in-process student answers tasks: whole evaluations, and the readings of a training run."""

import json
from pathlib import Path

import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.evaluation.engines import StudentEngine
from cogpo_jax.evaluation.run import Evaluation, during_training, evaluate
from cogpo_jax.evaluation.tasks import load_task
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.generate_rows import load_sampler
from cogpo_jax.student.model import init_params
from cogpo_jax.student.weights import to_hf
from cogpo_jax.text import TextFormat, train_tokenizer

EXTRACT = str(Path(__file__).parent / "gsm8k_extract.jsonl")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("student")
    train_tokenizer(["the cat sat on the mat, the hat on the cat"] * 3, folder / "tokenizer", 272)
    fields = {"model_type": "qwen3", "vocab_size": 272, "hidden_size": 32, "intermediate_size": 48}
    fields |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = StudentConfig.from_hf({**fields, "initializer_range": 0.3, "max_position_embeddings": 1024})
    to_hf(config, init_params(config, 0), folder / "hf", "float32", folder / "tokenizer", end_token="<|im_end|>")
    return str(folder / "hf")


def ask(model: str, output: Path, slots: int) -> list[dict[str, object]]:
    data = output.with_suffix(".jsonl")
    data.write_text("".join(json.dumps({"problem": word, "answer": "1"}) + "\n" for word in ("cat", "the hat", "mat")))
    task = load_task("math", samples=2, temperature=1.0, max_new_tokens=6, prompt="{problem}")
    engine = StudentEngine(model, slots=slots, text_format=TextFormat(prompt="raw"))
    assert evaluate(Evaluation(task, str(data), str(output), engine, seed=5))["samples"] == 6
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def test_a_students_responses_do_not_depend_on_what_they_are_made_with(model: str, tmp_path: Path) -> None:
    rows = ask(model, tmp_path / "a", slots=8)
    assert len({row["response"] for row in rows}) > 3
    assert all(row["tokens"] <= 6 and row["finish_reason"] in ("stop", "length") for row in rows)
    assert ask(model, tmp_path / "b", slots=4) == rows


def test_more_tokens_than_positions_are_refused_with_what_fits(model: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--max_new_tokens: 4096: .* more than the model's 1024 positions.*give at most"
    ):
        evaluate(Evaluation(load_task("gsm8k"), EXTRACT, str(tmp_path / "out"), StudentEngine(model)))
    assert not (tmp_path / "out").exists()


def test_a_reading_during_training_has_accuracy_and_lengths(model: str) -> None:
    engine = StudentEngine(model, text_format=TextFormat(prompt="raw"))
    readings = during_training("gsm8k", EXTRACT, 3, engine, max_new_tokens=6)
    _, engine.sampler = load_sampler(model)
    reading = readings.measure(engine)
    assert reading["accuracy"] == 0
    assert reading["accuracy_low"] == 0 < reading["accuracy_high"]
    assert reading["unknown"] == 1
    assert reading["tokens_mean"] <= 6
    assert readings.measure(engine) == reading
