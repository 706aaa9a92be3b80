"""The sampler continues as transformers does, and a seed decides a row's tokens whatever batch it is in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.sharding import make_mesh
from cogpo_jax.student import decoding, kv_cache
from cogpo_jax.student.decoding import Sampler
from cogpo_jax.student.model import ForwardOptions
from cogpo_jax.student.sampling import Sampling, next_tokens, restrict, row_keys
from cogpo_jax.student.weights import from_hf

MakeFolder = Callable[..., tuple[Any, Path]]
NEW = 40
SLOTS = 9  # the same in all tests, so that they share compiled programs


def sampler_of(config: Any, params: Any) -> Sampler:
    return Sampler(config, params, ForwardOptions(), SLOTS)


def prompts(lengths: tuple[int, ...] = (3, 150, 31, 7)) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, 132, n).tolist() for n in lengths]


def transformers_continuation(model: Any, prompt: list[int], stop: int | None = None) -> list[int]:
    import torch

    out = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=stop, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "case",
    [("qwen2", {}), ("llama", {"tie_word_embeddings": True}), ("qwen3", {"head_dim": 16, "tie_word_embeddings": True})],
)
def test_greedy_is_transformers_token_for_token(case: tuple[str, dict[str, Any]], hf_folder: MakeFolder) -> None:
    model, folder = hf_folder(case[0], **case[1])
    config, _, params = from_hf(folder)
    generated = sampler_of(config, params).generate(prompts(), NEW, [])
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
    generated = sampler_of(config, params).generate(prompts(), NEW, [stop])
    for prompt, ours in zip(prompts(), generated, strict=True):
        theirs = transformers_continuation(model, prompt)
        expected = theirs[: theirs.index(stop)] if stop in theirs else theirs
        assert (ours.tokens, ours.finish_reason) == (expected, "stop" if stop in theirs else "length")


def test_segments_end_at_the_same_tokens_however_many_there_are() -> None:
    assert kv_cache.segments(1) == [128]
    assert kv_cache.segments(512) == [128] * 4
    assert kv_cache.segments(8000) == [*[128] * 4, 256, 256, 512, 512, 1024, 1024, 2048, 2048]
    assert kv_cache.segments(8193)[:12] == kv_cache.segments(8000)


def test_a_gpu_has_few_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert kv_cache.segments(1) == kv_cache.segments(1024) == [1024]
    assert kv_cache.segments(1025) == [1024, 1024]


def test_longer_segments_hold_what_is_written_across_their_ends(qwen2: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config, params, _ = qwen2
    monkeypatch.setattr(kv_cache, "SEGMENT", 16)  # 16, 16, 16, 16, 32, 32, 64, ...
    monkeypatch.setattr(decoding, "PREFILL", 32)
    prompt = prompts((90,))[0]
    assert sampler_of(config, params).generate([prompt], NEW, [])[0].tokens == transformers_continuation(model, prompt)


@pytest.mark.parametrize("width", [1, 3])
def test_attention_over_segments_is_plain_attention(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(kv_cache, "SEGMENT", 4)
    rng, lengths = np.random.default_rng(0), kv_cache.segments(30)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 30, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    cache: Any = tuple(tuple(jnp.zeros((1, 2, n, 8)) for n in lengths) for _ in range(2))
    keys, values = (jnp.repeat(x, 2, axis=2) for x in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, keys) / 8**0.5
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((30, 30), bool)), scores, -jnp.inf), axis=-1)
    plain = jnp.einsum("bhts,bshd->bthd", weights, values)
    attend = jax.jit(kv_cache.attend)
    for at in range(0, 30, width):
        part, bound = slice(at, at + width), jnp.int32(at + width)
        found, cache = attend(q[:, part], k[:, part], v[:, part], cache, jnp.array([at]), bound)
        np.testing.assert_allclose(found, plain[:, part], atol=1e-5)


@pytest.mark.parametrize("smaller", [{"_ROOM": 128}, {"PREFILL": 32}, {"_SHARED": 10**9}])
def test_rooms_chunks_and_shared_prefixes_leave_no_trace(
    qwen2: tuple, monkeypatch: pytest.MonkeyPatch, smaller: dict[str, int]
) -> None:
    _, config, params, _ = qwen2
    sampler = sampler_of(config, params)
    start = prompts((70,))[0]
    some = [start + prompt for prompt in prompts((3, 40, 31, 7))]
    whole = sampler.generate(some, 90, [])
    for name, value in smaller.items():
        monkeypatch.setattr(decoding, name, value)
    assert sampler.generate(some, 90, []) == whole


def test_a_response_does_not_depend_on_its_neighbours(qwen2: tuple) -> None:
    _, config, params, _ = qwen2
    sampler = sampler_of(config, params)
    many, limits = prompts(tuple(range(2, 22))), [9 + 7 * i % 40 for i in range(20)]
    stop = sampler.generate(many[:1], 9, [])[0].tokens[3]
    alone = [sampler.generate([prompt], limit, [stop])[0] for prompt, limit in zip(many, limits, strict=True)]
    assert sampler.generate(many, limits, [stop]) == alone
    assert {one.finish_reason for one in alone} == {"stop", "length"}


def test_rows_come_as_they_finish_and_their_slots_are_filled_again(
    qwen2: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config, params, _ = qwen2
    steps, decode = [], decoding._decode

    def counted(*arguments: Any) -> Any:
        results = decode(*arguments)
        steps.append(int(results[2]))
        return results

    monkeypatch.setattr(decoding, "_decode", counted)
    limits = [31] * (SLOTS - 1) + [6] * 5
    order = [i for i, _ in sampler_of(config, params).stream(prompts((5,) * len(limits)), limits, [])]
    assert order[:4] == [SLOTS - 1, SLOTS, SLOTS + 1, SLOTS + 2]
    # all slots but one work on long rows, the last takes the five short ones: as many steps as a long row alone
    assert sum(steps) == 30


def test_slots_are_halved_when_few_rows_are_left(qwen2: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    _, config, params, _ = qwen2
    wide, decode = [], decoding._decode

    def seen(*arguments: Any) -> Any:
        wide.append(len(arguments[3].last))
        return decode(*arguments)

    many, limits = prompts(tuple(range(2, 16))), [20, 3] * 7
    whole = sampler_of(config, params).generate(many, limits, [])
    monkeypatch.setattr(decoding, "_decode", seen)
    monkeypatch.setattr(decoding, "SLOTS", SLOTS)
    assert Sampler(config, params, ForwardOptions(), 2 * SLOTS).generate(many, limits, []) == whole
    assert (wide[0], wide[-1]) == (2 * SLOTS, SLOTS)


def test_a_repeated_prompt_and_a_shared_prefix_are_computed_once(qwen2: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    _, config, params, _ = qwen2
    fed, embed_tokens = [], kv_cache.embed_tokens

    def counted(rest: Any, layer: Any, tokens: Any, **options: Any) -> Any:
        fed.append(tokens.shape)
        return embed_tokens(rest, layer, tokens, **options)

    monkeypatch.setattr(kv_cache, "embed_tokens", counted)
    sampler, sampling = sampler_of(config, params), Sampling(temperature=1.0, top_k=50, top_p=0.9)
    start = prompts((80,))[0]
    samples = [start + tail for tail in prompts((3, 7)) for _ in range(5)]
    limits = [2, 4, 5, 3, 4, 5, 4, 3, 5, 4]  # more samples than slots: the last is at other steps than its neighbours
    together = sampler.generate(samples, limits, [], sampling)
    assert fed == [(1, 80), (1, 16), (1, 16)]  # what both begin with, and two tails
    alone = [
        sampler.generate([prompt], limit, [], sampling, rows=[i])[0]
        for i, (prompt, limit) in enumerate(zip(samples, limits, strict=True))
    ]
    assert alone == together


def test_a_seed_draws_the_same_in_any_batch(qwen2: tuple) -> None:
    _, config, params, _ = qwen2
    sampler, sampling = sampler_of(config, params), Sampling(temperature=1.0, top_k=50, top_p=0.9)
    together = sampler.generate(prompts(), NEW, [2], sampling, seed=5)
    for rows in ([1, 0], [3, 1]):
        some = sampler.generate([prompts()[row] for row in rows], NEW, [2], sampling, seed=5, rows=rows)
        assert some == [together[row] for row in rows]
    assert sampler.generate(prompts(), NEW, [2], sampling, seed=6) != together
    same = sampler.generate([prompts()[1]] * 2, NEW, [2], sampling, seed=5)
    assert same[0].tokens != same[1].tokens  # equal prompts in two rows are two draws


def test_a_mesh_says_the_same(qwen2: tuple) -> None:
    _, config, params, folder = qwen2
    alone = sampler_of(config, params).generate(prompts(), NEW, [])
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, _, params = from_hf(folder, mesh)
    sampler = Sampler(config, params, ForwardOptions(mesh=mesh), slots=3)  # four row shards of one slot each
    assert sampler.generate(prompts(), NEW, []) == alone
    many = [prompts()[1]] * 3 + prompts((9, 8, 7, 6, 5, 4))  # three samples of a prompt and six other prompts
    assert sampler.generate(many, NEW, []) == sampler_of(config, params).generate(many, NEW, [])


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
    drawn = next_tokens(logits, row_keys(0, jnp.arange(n)), jnp.full(n, 3), Sampling(temperature=1.0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / n, probabilities, atol=0.015)
    cold = next_tokens(logits, row_keys(0, jnp.arange(n)), jnp.full(n, 3), Sampling(temperature=0.5))
    np.testing.assert_allclose(np.bincount(cold, minlength=4) / n, probabilities**2 / sum(probabilities**2), atol=0.015)


def test_bad_input_is_named(qwen2: tuple) -> None:
    _, config, params, _ = qwen2
    sampler = sampler_of(config, params)
    for given, new, words in (([[]], 1, "empty"), ([[1]], 0, "max_new_tokens"), ([[1] * 500], 20, "512 positions")):
        with pytest.raises(UserError, match=words):
            sampler.generate(given, new, [])
    for fields in ({"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(UserError, match=next(iter(fields))):
            Sampling(**fields)
