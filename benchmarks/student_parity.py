"""score.py and generate.py against transformers on real texts: the same sums of log-probs, the same greedy tokens; and
how far logits in bfloat16 are from float32's, ours and theirs.

    python benchmarks/student_parity.py --tokenizer=QWEN_FOLDER --texts=long_cot.jsonl [--scores=100] [--prompts=50]

Makes a tiny random student (Qwen2.5, tied, vocabulary 151,936) behind the real tokenizer, exports it, and runs both
commands' functions and transformers on the same folder. `--texts`: JSONL whose `--prompt_field` is the prompt and whose
`--response_fields`, joined, are the response; the first rows with at most `--max_tokens` tokens are taken. A greedy
token that differs counts as a tie where transformers' top two logits are within 1e-4. The bfloat16 line is of
`--bfloat16_config` with random weights, four texts cut to 256 tokens. Prints three JSON lines.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from absl import flags
from flax import nnx

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.generate_rows import GenerateOptions, generate_file
from cogpo_jax.student.model import ForwardOptions, init_params
from cogpo_jax.student.weights import from_hf, to_hf
from cogpo_jax.training.score_rows import ScoreOptions, score_file

_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder of the Qwen2.5 tokenizer.")
_TEXTS = flags.DEFINE_string("texts", None, "JSONL of real texts.")
_PROMPT_FIELD = flags.DEFINE_string("prompt_field", "problem", "The field that is the prompt.")
_RESPONSE_FIELDS = flags.DEFINE_list("response_fields", "cot,response", "The fields that make up the response.")
_SCORES = flags.DEFINE_integer("scores", 100, "Responses to score.")
_PROMPTS = flags.DEFINE_integer("prompts", 50, "Prompts to continue.")
_NEW = flags.DEFINE_integer("new_tokens", 64, "Tokens of each continuation.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 4096, "Longer texts are left out.")
_BFLOAT16 = flags.DEFINE_string("bfloat16_config", "configs/models/qwen2.5-0.5b.json", "Student of the bfloat16 line.")

TIE = 1e-4
STUDENT = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
    "initializer_range": 0.2,
    "max_position_embeddings": 8192,
    "rope_theta": 1e6,
}


def main() -> None:
    for name, value in (("tokenizer", _TOKENIZER.value), ("texts", _TEXTS.value)):
        if not value or not Path(value).exists():
            raise UserError(f"--{name}: {value}: no such file or folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = StudentConfig.from_hf(STUDENT)
        to_hf(config, init_params(config, 0), folder / "hf", "float32", _TOKENIZER.value)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval()
        rows = _rows(tokenizer)
        print(json.dumps(_scores(folder, tokenizer, model, rows[: _SCORES.value])), flush=True)
        print(json.dumps(_greedy(folder, tokenizer, model, rows[: _PROMPTS.value])), flush=True)
        print(json.dumps(_bfloat16(folder, tokenizer, rows[:4])), flush=True)


def _rows(tokenizer: Any) -> list[dict[str, str]]:
    rows = []
    for line in Path(_TEXTS.value).read_bytes().splitlines():
        record = json.loads(line)
        row = {
            "prompt": record[_PROMPT_FIELD.value],
            "response": "\n\n".join(str(record[field]) for field in _RESPONSE_FIELDS.value),
        }
        if sum(map(len, _ids(tokenizer, row))) <= _MAX_TOKENS.value:
            rows.append(row)
        if len(rows) == max(_SCORES.value, _PROMPTS.value):
            return rows
    raise UserError(f"--texts: {_TEXTS.value}: only {len(rows)} texts of at most {_MAX_TOKENS.value} tokens")


def _ids(tokenizer: Any, row: dict[str, str]) -> tuple[list[int], list[int]]:
    turns = [{"role": "user", "content": row["prompt"]}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return prompt, [*tokenizer(row["response"])["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]


def _write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _scores(folder: Path, tokenizer: Any, model: Any, rows: list[dict[str, str]]) -> dict[str, Any]:
    report = score_file(str(folder / "hf"), _write(folder / "in", rows), str(folder / "scored"), ScoreOptions())
    differences = []
    for row in _read(folder / "scored"):
        theirs = _sum_of_logps(model, *_ids(tokenizer, row))
        differences.append(abs(row["logp"] - theirs) / abs(theirs))
    return {
        "what": "sum of log-probs against transformers",
        "responses": len(rows),
        "response_tokens": report["tokens"],
        "max_relative_difference": max(differences),
        "mean_relative_difference": float(np.mean(differences)),
        "pass": max(differences) <= 1e-3,
    }


@torch.no_grad()
def _sum_of_logps(model: Any, prompt: list[int], response: list[int]) -> float:
    hidden = model.model(torch.tensor([prompt + response])).last_hidden_state[0, len(prompt) - 1 : -1]
    total = 0.0
    for part, target in zip(hidden.split(256), torch.tensor(response).split(256), strict=True):
        total += float(torch.log_softmax(model.lm_head(part), -1).gather(1, target[:, None]).double().sum())
    return total


def _greedy(folder: Path, tokenizer: Any, model: Any, rows: list[dict[str, str]]) -> dict[str, Any]:
    source = _write(folder / "prompts", [{"prompt": row["prompt"]} for row in rows])
    generate_file(str(folder / "hf"), source, str(folder / "out"), GenerateOptions(max_new_tokens=_NEW.value))
    equal, ties, wrong = 0, 0, []
    for i, (row, ours) in enumerate(zip(rows, _read(folder / "out"), strict=True)):
        prompt = _ids(tokenizer, row)[0]
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=_NEW.value, do_sample=False, repetition_penalty=1.0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        tokens = [t for t in theirs.sequences[0, len(prompt) :].tolist() if t not in (151_643, 151_645)]
        if tokenizer.decode(tokens) == ours["response"] and len(tokens) == ours["tokens"]:
            equal += 1
        elif any(float(top[0] - top[1]) <= TIE for top in (step[0].topk(2).values for step in theirs.logits)):
            ties += 1
        else:
            wrong.append(i)
    return {
        "what": "greedy tokens against transformers",
        "prompts": len(rows),
        "new_tokens": _NEW.value,
        "equal": equal,
        "differ_after_a_tie": ties,
        "differ": wrong,
        "pass": not wrong,
    }


def _bfloat16(folder: Path, tokenizer: Any, rows: list[dict[str, str]]) -> dict[str, Any]:
    """How far bfloat16 logits, ours and theirs, are from transformers' float32 ones; how often the top token does."""
    config = StudentConfig.from_hf(_BFLOAT16.value)
    to_hf(config, init_params(config, 0), folder / "large", "float32")
    texts = [torch.tensor([(p + r)[:256]]) for p, r in (_ids(tokenizer, row) for row in rows)]
    theirs = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "large", dtype=dtype).eval()
        with torch.no_grad():
            theirs[dtype] = [model(text).logits[0].float().numpy() for text in texts]
    del model
    graphdef, params = from_hf(folder / "large")[1:]

    @jax.jit
    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        student = nnx.merge(graphdef, params)
        positions = np.arange(tokens.shape[1])[None]
        return student.logits(student(tokens, np.ones_like(positions), positions, ForwardOptions("bfloat16")))

    ours = [np.asarray(logits(params, text.numpy().astype(np.int32))[0]) for text in texts]
    exact = np.concatenate(theirs[torch.float32])

    def distance(of: list[np.ndarray]) -> dict[str, float]:
        found = np.concatenate(of)
        return {
            "max": float(np.abs(found - exact).max()),
            "mean": float(np.abs(found - exact).mean()),
            "top_token_differs": float((found.argmax(-1) != exact.argmax(-1)).mean()),
        }

    return {
        "what": "bfloat16 logits against transformers' float32 ones",
        "largest_logit": float(np.abs(exact).max()),
        "tokens": len(exact),
        "ours": distance(ours),
        "transformers": distance(theirs[torch.bfloat16]),
    }


if __name__ == "__main__":
    cli.run(main)
