"""launch/generate.py answers every row, in order, whatever the batches, and says why where it does not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.generate_rows import GenerateOptions, generate_file
from cogpo_jax.student.model import init_params
from cogpo_jax.student.sampling import Sampling
from cogpo_jax.student.weights import to_hf
from cogpo_jax.text import train_tokenizer

COMMAND = [sys.executable, str(Path(__file__).parents[2] / "launch" / "generate.py")]
ROWS = [{"prompt": p, "id": i} for i, p in enumerate(["the cat", "a hat " * 20, "sat", "on the mat " * 9, "the dog"])]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    train_tokenizer(["the cat sat on the mat, the hat on the cat"] * 3, folder / "tokenizer", 272)
    fields = {
        "model_type": "qwen3",
        "vocab_size": 272,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
        "max_position_embeddings": 512,
    }
    config = StudentConfig.from_hf(fields)
    to_hf(config, init_params(config, 0), folder / "hf", "float32", folder / "tokenizer", end_token="<|im_end|>")
    return folder / "hf"


def generate(model: Path, folder: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = GenerateOptions(**{"max_new_tokens": 12, "batch": 2, **options})
    report = generate_file(str(model), str(folder / "in.jsonl"), str(folder / "out.jsonl"), options)
    return report, [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_rows_come_back_in_order_whatever_the_batch(model: Path, tmp_path: Path) -> None:
    drawn = {"sampling": Sampling(temperature=1.0), "seed": 3}
    report, rows = generate(model, tmp_path, **drawn)
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4]
    assert report["generated"] == 5
    assert report["tokens"] == sum(row["tokens"] for row in rows)
    assert generate(model, tmp_path, batch=5, **drawn)[1] == rows


def test_a_prompt_without_room_is_null_with_a_reason(model: Path, tmp_path: Path) -> None:
    report, rows = generate(model, tmp_path, max_new_tokens=480)
    cut = [row for row in rows if row["response"] is None]
    assert report["too_long"] == len(cut) > 0
    assert all("no room for 480" in row["reason"] for row in cut)


def test_a_stop_word_must_be_a_token(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'no such token'"):
        generate(model, tmp_path, stop=("no such token",))


def test_the_command(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"prompt": "the cat"}\n')
    args = [f"--model={model}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--max_new_tokens=4"]
    result = subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["rows"] == 1
    assert set(json.loads((tmp_path / "out").read_text())) == {"prompt", "response", "tokens", "finish_reason"}
    result = subprocess.run([*COMMAND, *args, "--top_p=0"], capture_output=True, text=True, timeout=120)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_a_seed_beyond_32_bits_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match=rf"seed: {seed}: must be at least 0 and at most 4294967295"):
        GenerateOptions(seed=seed)
