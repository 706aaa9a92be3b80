"""Is the exported folder the student that was trained? Its logits through transformers beside the checkpoint's own."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cogpo_jax.progress import say
from cogpo_jax.sharding import make_mesh
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, graphdef_of
from cogpo_jax.text import load_tokenizer
from cogpo_jax.training.initial import load_params


def max_logit_difference(workdir: str | Path, hf_folder: str | Path, texts: list[str], length: int = 512) -> float:
    """Largest |difference| of float32 logits over the first `length` tokens of each text.

    The student is the newest checkpoint of `workdir`; transformers reads `hf_folder`, its tokenizer included, as a user
    would. Needs torch.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    own, theirs = load_tokenizer(Path(workdir) / "tokenizer"), AutoTokenizer.from_pretrained(hf_folder)
    model = AutoModelForCausalLM.from_pretrained(hf_folder, dtype=torch.float32).eval()
    mesh = make_mesh({"replica": 1, "data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])
    config, params, _ = load_params(workdir, mesh, "float32", say=say)
    largest = 0.0
    for text in texts:
        ids = theirs(text, add_special_tokens=False)["input_ids"][:length]
        if ids != own(text, add_special_tokens=False)["input_ids"][:length]:
            raise ValueError(f"{hf_folder}: its tokenizer gives other ids than the training's for {text[:60]!r}")
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(ids)] = ids
        logits = np.asarray(_logits(config, params, padded, np.int32(np.arange(length)[None] < len(ids))))
        largest = max(largest, float(np.abs(logits[0, : len(ids)] - expected).max()))
    return largest


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: StudentConfig, params: Any, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
    student = nnx.merge(graphdef_of(config), params)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return student.logits(student(tokens, segment_ids, positions, ForwardOptions()))
