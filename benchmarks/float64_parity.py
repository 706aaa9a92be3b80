"""How far float32 is from float64, ours and transformers', layer by layer and operation by operation, on real weights.

    python benchmarks/float64_parity.py --model=SMOLLM2_FOLDER [--layer=11]

48 random tokens. Prints one line a layer (largest value of the residual stream, largest error of ours and theirs), one
an operation of the MLP of --layer from equal float32 inputs, and one for the logits. Needs torch.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers import AutoModelForCausalLM

from cogpo_jax.student.layers import rope_tables
from cogpo_jax.student.model import ForwardOptions
from cogpo_jax.student.weights import from_hf


def error(found: object, right: torch.Tensor) -> str:
    """The largest and the root-mean-square error, and the error of the largest value relative to it."""
    off = np.abs(np.asarray(found, np.float64) - right.numpy())
    at = int(right.abs().argmax())
    relative = off.flat[at] / abs(right.numpy().flat[at])
    return f"max {off.max():.2g}, rms {np.sqrt((off**2).mean()):.2g}, of the largest value {relative:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layer", type=int, default=11)
    given = parser.parse_args()
    exact = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float64).eval()
    theirs = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    config, graphdef, params = from_hf(given.model)
    student = nnx.merge(graphdef, params)
    tokens = np.random.default_rng(0).integers(10, config.vocab_size - 1000, (1, 48))
    with torch.no_grad():
        right, other = (m(torch.tensor(tokens), output_hidden_states=True) for m in (exact, theirs))
    segments, positions = jnp.ones((1, 48), jnp.int32), jnp.arange(48)[None]
    x, rope = student.embed_tokens(jnp.asarray(tokens), "float32"), rope_tables(config, positions)
    structure, stacked = nnx.split(student.layers)
    blocks = [nnx.merge(structure, jax.tree.map(lambda a, i=i: a[i], stacked)) for i in range(config.num_hidden_layers)]
    for i, block in enumerate(blocks[:-1], start=1):
        x = block(x, rope, segments, positions, ForwardOptions())
        h = right.hidden_states[i]
        print(f"after layer {i}: {h.abs().max():.6g}; ours {error(x, h)}; theirs {error(other.hidden_states[i], h)}")
    ours, mlp, mlp32 = blocks[given.layer], exact.model.layers[given.layer].mlp, theirs.model.layers[given.layer].mlp
    with torch.no_grad():
        x = exact.model.layers[given.layer].post_attention_layernorm(right.hidden_states[given.layer]).float()
        wide = (torch.nn.functional.silu(mlp.gate_proj(x.double())) * mlp.up_proj(x.double())).float()
        for name, given_to in (("gate_proj", x), ("up_proj", x), ("down_proj", wide)):
            answer = getattr(mlp, name)(given_to.double())
            found = getattr(ours.mlp, name)(jnp.asarray(given_to.numpy())), getattr(mlp32, name)(given_to)
            print(f"{name}: ours {error(found[0], answer)}; theirs {error(found[1], answer)}")
    logits = student.logits(student(jnp.asarray(tokens), segments, positions))
    print(f"logits, largest {right.logits.abs().max():.3g}: ours {error(logits, right.logits)}; "
          f"theirs {error(other.logits, right.logits)}")  # fmt: skip


if __name__ == "__main__":
    main()
