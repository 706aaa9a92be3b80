"""A run's checkpoint leaves as a Hugging Face folder that transformers loads, without an accelerator."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from cogpo_jax.configs import tiny_cpu
from cogpo_jax.errors import UserError
from cogpo_jax.quickstart import max_logit_difference
from cogpo_jax.sharding import make_mesh, param_shardings
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.hf_folder import find_tensors
from cogpo_jax.student.model import abstract_params
from cogpo_jax.student.weights import from_hf
from cogpo_jax.text import train_tokenizer
from cogpo_jax.training.checkpoint import Checkpoints, export_checkpoint

COMMAND = [sys.executable, str(Path(__file__).parents[2] / "launch" / "export_hf.py")]
MODEL = {
    "model_type": "qwen2",
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def weights(abstract: Any, step: int) -> Any:
    """The weights of a checkpoint: numbers that tell parameters and steps apart."""
    leaves, structure = jax.tree.flatten(abstract)
    rngs = [np.random.default_rng([step, i]) for i in range(len(leaves))]
    values = [rng.standard_normal(x.shape, np.float32) for rng, x in zip(rngs, leaves, strict=True)]
    return jax.tree.unflatten(structure, values)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 1 and 2, saved from a mesh of eight devices."""
    workdir = tmp_path_factory.mktemp("run")
    config = StudentConfig.from_hf(MODEL)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    train_tokenizer(["the cat sat on the mat, the hat on the cat"] * 3, workdir / "tokenizer", 272)
    (workdir / "student.json").write_text(json.dumps(config.to_hf()))
    (workdir / "config.json").write_text(json.dumps(tiny_cpu.get_config().to_dict()))
    checkpoints = Checkpoints(workdir)
    abstract = abstract_params(config)
    for step in (1, 2):
        params = jax.tree.map(jax.device_put, weights(abstract, step), param_shardings(mesh, abstract))
        checkpoints.save(step, params, {"count": np.int32(step)}, {"param_dtype": "float32"})
    checkpoints.wait()
    checkpoints.close()
    return workdir


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=120)


def test_the_newest_checkpoint_is_exported_and_transformers_loads_it(workdir: Path, tmp_path: Path) -> None:
    result = run(f"--workdir={workdir}", f"--output={tmp_path / 'hf'}", "--dtype=float32")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["step"], said["card"], said["modelfile"]) == (2, "README.md", "Modelfile")
    config, _, params = from_hf(tmp_path / "hf")
    expected = weights(abstract_params(config), 2)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(a, b)
    torch = pytest.importorskip("torch")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == end
    assert tokenizer.chat_template
    assert torch.equal(model.model.embed_tokens.weight, torch.tensor(np.asarray(params["embed_tokens"]["weight"])))


def test_an_older_step_in_bfloat16(workdir: Path, tmp_path: Path) -> None:
    assert export_checkpoint(str(workdir), str(tmp_path / "hf"), step=1)["step"] == 1
    assert {entry.dtype for entry in find_tensors(tmp_path / "hf").values()} == {"BF16"}


def test_bad_input_is_one_line_and_exit_code_2(workdir: Path, tmp_path: Path) -> None:
    result = run(f"--workdir={tmp_path}", f"--output={tmp_path / 'x'}")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert "student.json" in result.stderr


def test_bad_input_is_named(workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    shutil.copytree(workdir, tmp_path / "broken", ignore=lambda *_: ["checkpoints"])
    for folder, output, options, words in (
        (workdir, "x", {"step": 7}, r"checkpoints of steps \[1, 2\]"),
        (workdir, "x", {"dtype": "int8"}, "--dtype: 'int8'"),
        (workdir, "full", {}, "not empty"),
        (tmp_path / "broken", "x", {}, "checkpoints of steps none"),
    ):
        with pytest.raises(UserError, match=words):
            export_checkpoint(str(folder), str(tmp_path / output), **options)
    assert not (tmp_path / "x").exists()


def test_an_export_has_the_checkpoints_logits_and_another_steps_has_not(workdir: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for step, equal in ((2, True), (1, False)):
        export_checkpoint(str(workdir), str(tmp_path / f"hf{step}"), step=step, dtype="float32")
        difference = max_logit_difference(workdir, tmp_path / f"hf{step}", ["the cat sat", "the hat"], length=16)
        assert (difference < 2e-4) == equal
