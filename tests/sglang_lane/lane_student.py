"""A folder that we export serves in SGLang, and SGLang's greedy tokens are the sampler's: `make test-sglang`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogpo_jax import text
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.decoding import Sampler
from cogpo_jax.student.model import ForwardOptions, graphdef_of, init_params
from cogpo_jax.student.weights import to_hf
from cogpo_jax.text import train_tokenizer

HERE = Path(__file__).parent
ROWS = HERE.parent / "data" / "long_cot.jsonl"
NEW, TIE = 64, 1e-4
MODEL = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,  # SGLang's Qwen2 takes hidden_size / heads whatever config.json says
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,
    "eos_token_id": 1023,
}


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def student(request, tmp_path_factory):
    """(config, parameters, exported folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    train_tokenizer([json.loads(line)["response"] for line in ROWS.read_text().splitlines()], folder / "t", 1024)
    config = StudentConfig.from_hf(MODEL | {"model_type": request.param})
    params = init_params(config, 0)
    to_hf(config, params, folder / "hf", "float32", folder / "t", end_token="<|im_end|>")
    return config, params, folder / "hf"


@pytest.fixture(scope="module")
def server(student, tmp_path_factory):
    """The URL of an SGLang server with the exported folder in float32."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = {**os.environ, "VENV": str(Path(os.environ["LANE_PYTHON"]).parents[1]), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(HERE / "server" / "serve.sh"), str(student[2]), str(port)]
    command += ["--dtype", "float32", "--sleep-on-idle"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(1)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"SGLang did not start: {log.read_text()[-2000:]}")
    yield url
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)


def test_greedy_tokens_are_sglangs(student, server):
    config, params, folder = student
    tokenizer, text_format = text.load_tokenizer(folder), text.TextFormat()
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    prompts = text.encode_prompts(
        tokenizer, [text.prompt_text(tokenizer, row["prompt"], text_format=text_format) for row in rows]
    )
    ours = Sampler(config, params, ForwardOptions()).generate(prompts, NEW, [])
    sampling = {"temperature": 0.0, "max_new_tokens": NEW, "ignore_eos": True}
    equal = 0
    for prompt, mine in zip(prompts, ours, strict=True):
        body = {"input_ids": prompt, "sampling_params": sampling}
        answer = httpx.post(f"{server}/generate", json=body, timeout=120, trust_env=False)
        theirs = answer.raise_for_status().json()["output_ids"][:NEW]
        if theirs == mine.tokens:
            equal += 1
        else:
            assert top_two_gap(config, params, prompt, mine.tokens, theirs) <= TIE
    assert equal > len(prompts) // 2


def top_two_gap(config, params, prompt, mine, theirs) -> float:
    """How far apart our two best logits are where the continuations part."""
    same = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
    tokens = jnp.asarray([[*prompt, *mine[:same]]])
    student = nnx.merge(graphdef_of(config), params)
    positions = jnp.arange(tokens.shape[1])[None]
    best = np.sort(np.asarray(student.logits(student(tokens, jnp.ones_like(tokens), positions))[0, -1]))
    return float(best[-1] - best[-2])
