"""The sampler continues as transformers does, and a seed decides a row's tokens whatever batch it is in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.sharding import make_mesh
from cogpo_jax.student import decoding as sampler_module
from cogpo_jax.student.decoding import Sampler
from cogpo_jax.student.model import ForwardOptions
from cogpo_jax.student.sampling import Sampling, next_tokens, restrict, row_keys
from cogpo_jax.student.weights import from_hf

MakeFolder = Callable[..., tuple[Any, Path]]
NEW = 40


def prompts(lengths: tuple[int, ...] = (3, 150, 31, 7)) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, 132, n).tolist() for n in lengths]


def transformers_continuation(model: Any, prompt: list[int], stop: int | None = None) -> list[int]:
    import torch

    out = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=stop, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", [("qwen2", {}), ("qwen3", {"head_dim": 16, "tie_word_embeddings": True})])
def test_greedy_is_transformers_token_for_token(case: tuple[str, dict[str, Any]], hf_folder: MakeFolder) -> None:
    model, folder = hf_folder(case[0], **case[1])
    config, _, params = from_hf(folder)
    generated = Sampler(config, params, ForwardOptions()).generate(prompts(), NEW, [])
    for prompt, ours in zip(prompts(), generated, strict=True):
        assert ours.tokens == transformers_continuation(model, prompt)
        assert ours.finish_reason == "length"


@pytest.fixture
def qwen2(hf_folder: MakeFolder) -> tuple[Any, Any, Any, Path]:
    model, folder = hf_folder("qwen2")
    config, _, params = from_hf(folder)
    return model, config, params, folder


def test_a_stop_token_ends_a_row_and_is_left_out(qwen2: tuple) -> None:
    model, config, params, _ = qwen2
    stop = transformers_continuation(model, prompts()[1])[5]
    generated = Sampler(config, params, ForwardOptions()).generate(prompts(), NEW, [stop])
    for prompt, ours in zip(prompts(), generated, strict=True):
        theirs = transformers_continuation(model, prompt)
        expected = theirs[: theirs.index(stop)] if stop in theirs else theirs
        assert (ours.tokens, ours.finish_reason) == (expected, "stop" if stop in theirs else "length")


def test_the_cache_grows_without_a_trace(qwen2: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    _, config, params, _ = qwen2
    sampler = Sampler(config, params, ForwardOptions())
    whole = sampler.generate(prompts(), NEW, [])
    monkeypatch.setattr(sampler_module, "CHUNK", 7)
    assert sampler.generate(prompts(), NEW, []) == whole


def test_a_seed_draws_the_same_in_any_batch(qwen2: tuple) -> None:
    _, config, params, _ = qwen2
    sampler, sampling = Sampler(config, params, ForwardOptions()), Sampling(temperature=1.0, top_k=50, top_p=0.9)
    together = sampler.generate(prompts(), NEW, [2], sampling, seed=5)
    for rows in ([1, 0], [3, 1]):
        some = sampler.generate([prompts()[row] for row in rows], NEW, [2], sampling, seed=5, rows=rows)
        assert some == [together[row] for row in rows]
    assert sampler.generate(prompts(), NEW, [2], sampling, seed=6) != together
    same = sampler.generate([prompts()[1]] * 2, NEW, [2], sampling, seed=5)
    assert same[0].tokens != same[1].tokens  # equal prompts in two rows are two draws


def test_a_mesh_says_the_same(qwen2: tuple) -> None:
    _, config, params, folder = qwen2
    alone = Sampler(config, params, ForwardOptions()).generate(prompts(), NEW, [])
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, _, params = from_hf(folder, mesh)
    assert Sampler(config, params, ForwardOptions(mesh=mesh)).generate(prompts(), NEW, []) == alone
    # three prompts on four row shards: the mesh is filled up with rows that nobody asked for
    assert Sampler(config, params, ForwardOptions(mesh=mesh)).generate(prompts()[:3], NEW, []) == alone[:3]


def test_restriction_is_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(0, 3, (6, 997)).astype(np.float32)
    for top_k, top_p in ((1, 1.0), (20, 1.0), (0, 0.8), (0, 0.05), (0, 0.999), (20, 0.8)):
        ours = np.asarray(restrict(jnp.asarray(logits), Sampling(1.0, top_k, top_p)))
        theirs = torch.tensor(logits)
        for warper in ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else []):
            theirs = warper(None, theirs)
        assert np.array_equal(np.isfinite(ours), np.isfinite(theirs.numpy())), (top_k, top_p)
        assert np.array_equal(ours[np.isfinite(ours)], logits[np.isfinite(ours)])


def test_draws_follow_the_distribution() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    n = 20_000
    logits = jnp.broadcast_to(jnp.log(probabilities), (n, 4))
    drawn = next_tokens(logits, row_keys(0, jnp.arange(n)), jnp.int32(3), Sampling(temperature=1.0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / n, probabilities, atol=0.015)
    cold = next_tokens(logits, row_keys(0, jnp.arange(n)), jnp.int32(3), Sampling(temperature=0.5))
    np.testing.assert_allclose(np.bincount(cold, minlength=4) / n, probabilities**2 / sum(probabilities**2), atol=0.015)


def test_bad_input_is_named(qwen2: tuple) -> None:
    _, config, params, _ = qwen2
    sampler = Sampler(config, params, ForwardOptions())
    for given, new, words in (([[]], 1, "empty"), ([[1]], 0, "max_new_tokens"), ([[1] * 500], 20, "512 positions")):
        with pytest.raises(UserError, match=words):
            sampler.generate(given, new, [])
    for fields in ({"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(UserError, match=next(iter(fields))):
            Sampling(**fields)
