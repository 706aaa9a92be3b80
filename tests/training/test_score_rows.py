"""launch/score.py gives transformers' sums of log-probs, for any packing, and drops nothing silently."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import init_params
from cogpo_jax.student.weights import to_hf
from cogpo_jax.text import train_tokenizer
from cogpo_jax.training.score_rows import ScoreOptions, score_file

ROWS = Path(__file__).parent.parent / "data" / "long_cot.jsonl"
COMMAND = [sys.executable, str(Path(__file__).parents[2] / "launch" / "score.py")]


def make_model(folder: Path, tokenizer: Path, vocab_size: int, end: int) -> Path:
    """A tiny random Qwen2.5 behind a tokenizer."""
    fields = {
        "model_type": "qwen2",
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "eos_token_id": end,
        "initializer_range": 0.3,
        "max_position_embeddings": 8192,
    }
    config = StudentConfig.from_hf(fields)
    to_hf(config, init_params(config, 0), folder, "float32", tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a small tokenizer of its own: a vocabulary of 152k would cost minutes."""
    folder = tmp_path_factory.mktemp("small")
    train_tokenizer([row["response"] for row in read(ROWS)], folder / "tokenizer", 512)
    return make_model(folder / "hf", folder / "tokenizer", 512, 511)


@pytest.fixture(scope="module")
def scored(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("scored") / "out.jsonl"
    score_file(str(model), str(ROWS), str(output), ScoreOptions())
    return read(output)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=120)


def test_sums_are_transformers(tmp_path: Path, qwen25_tokenizer: Path) -> None:
    torch = pytest.importorskip("torch")
    import transformers

    folder = make_model(tmp_path / "hf", qwen25_tokenizer, 151_936, 151_645)  # padded beyond the tokenizer, as Qwen's
    source = write(tmp_path / "in", sorted(read(ROWS), key=lambda row: len(row["response"]))[:6])
    score_file(str(folder), str(source), str(tmp_path / "out"), ScoreOptions())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    student = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for row in read(tmp_path / "out"):
        turns = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        response = [*tokenizer(row["response"])["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
        with torch.no_grad():
            logits = student(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            logps = torch.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])
        assert row["tokens"] == len(response)
        assert row["logp"] == pytest.approx(float(logps.sum()), rel=1e-4)


def test_rows_come_back_whole_and_in_order(scored: list[dict[str, Any]]) -> None:
    given = read(ROWS)
    assert [{k: row[k] for k in given[0]} for row in scored] == given


def test_packing_changes_nothing(model: Path, scored: list[dict[str, Any]], tmp_path: Path) -> None:
    score_file(str(model), str(ROWS), str(tmp_path / "out"), ScoreOptions(window=5, row_length=4096))
    np.testing.assert_allclose([r["logp"] for r in read(tmp_path / "out")], [r["logp"] for r in scored], rtol=1e-5)


def test_the_steps_are_the_response_and_a_step_is_what_a_prefix_lacks(model: Path, tmp_path: Path) -> None:
    """Log-probs of steps add up to the response's; those of the first steps are the same whatever follows."""
    lines = ["We add 2 and 3.\n", "That makes 5.\n", "\n", "The answer is 5."]
    rows = [{"prompt": "2+3?", "response": "".join(lines[:n])} for n in (4, 2, 1)]
    options = ScoreOptions(by_step=r"\n+")
    score_file(str(model), str(write(tmp_path / "in", rows)), str(tmp_path / "out"), options)
    whole, short, first = read(tmp_path / "out")
    assert [step["end"] for step in whole["steps"]] == [16, 31, 47]
    assert whole["steps"][0]["tokens"] == first["tokens"] - 1  # without the end token
    assert sum(step["tokens"] for step in whole["steps"]) == whole["tokens"]
    assert sum(step["logp"] for step in whole["steps"]) == pytest.approx(whole["logp"], rel=1e-6)
    assert whole["steps"][0] == pytest.approx(short["steps"][0], rel=1e-4)
    with pytest.raises(UserError, match=r"--by_step: .*: not a regular expression"):
        ScoreOptions(by_step="(")


def test_a_response_that_is_too_long_is_null_with_a_reason(
    model: Path, scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    report = score_file(str(model), str(ROWS), str(tmp_path / "out"), ScoreOptions(row_length=2048))
    rows = read(tmp_path / "out")
    too_long = [row for row in rows if row["logp"] is None]
    assert report["too_long"] == len(too_long) > 0
    assert all("a row has 2048" in row["reason"] and row["tokens"] is None for row in too_long)
    for row, before in zip(rows, scored, strict=True):
        assert row["logp"] is None or row["logp"] == pytest.approx(before["logp"], rel=1e-5)


def test_a_system_message_changes_the_score(model: Path, tmp_path: Path) -> None:
    row = {"prompt": "1+1?", "response": "2"}
    source = write(tmp_path / "in", [row, row | {"system": "Answer in French."}])
    score_file(str(model), str(source), str(tmp_path / "out"), ScoreOptions())
    plain, french = read(tmp_path / "out")
    assert plain["tokens"] == french["tokens"] == 2
    assert plain["logp"] != pytest.approx(french["logp"], rel=1e-3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"}', "in:2: response: missing"),
        ('{"prompt": "a", "response": 3}', "in:2: response: int"),
        ('{"prompt": "", "response": "b"}', "in:2: prompt: empty"),
        ("[1]", "in:2: must be a JSON object"),
        ("{", "in:2: not JSON"),
    ],
)
def test_a_wrong_row_is_named_before_any_work(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "in").write_text('{"prompt": "a", "response": "b"}\n' + line + "\n")
    with pytest.raises(UserError, match=words):
        score_file("no such model", str(tmp_path / "in"), str(tmp_path / "out"), ScoreOptions())


def test_the_command(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in", [{"prompt": "1+1?", "response": "2"}])
    result = run(f"--model={model}", f"--input={source}", f"--output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["scored"] == len(read(tmp_path / "out")) == 1
    result = run(f"--model={tmp_path}", f"--input={source}", f"--output={tmp_path / 'out'}")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
