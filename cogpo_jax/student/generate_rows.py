"""Responses for a file of prompts: rows {prompt} -> the same rows with `response`, `tokens` and `finish_reason`."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from cogpo_jax import text
from cogpo_jax.atomic import atomic_file, check_writable
from cogpo_jax.errors import UserError
from cogpo_jax.progress import Bar
from cogpo_jax.prompt_rows import check_rows, read_rows, to_line
from cogpo_jax.sharding import make_mesh
from cogpo_jax.student import hf_folder
from cogpo_jax.student.attention import default_backend
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.decoding import SLOTS, Sampler
from cogpo_jax.student.model import ForwardOptions
from cogpo_jax.student.sampling import GREEDY, Sampling, check_seed
from cogpo_jax.student.weights import from_hf

_FIELDS = ("prompt",)


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """How to generate. compute_dtype empty: float32 on a CPU, bfloat16 elsewhere; tensor: devices that split heads."""

    max_new_tokens: int = 512
    batch: int = SLOTS  # rows decoded at a time
    seed: int = 0
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()  # tokens that end a response beside the end token and the folder's generation config's
    compute_dtype: str = ""
    tensor: int = 1
    text_format: text.TextFormat = dataclasses.field(default_factory=text.TextFormat)

    def __post_init__(self) -> None:
        for field in ("max_new_tokens", "batch", "tensor"):
            if getattr(self, field) < 1:
                raise UserError(f"--{field}: {getattr(self, field)}: must be at least 1")
        check_seed(self.seed)


def generate_file(model: str, source: str, output: str, options: GenerateOptions) -> dict[str, Any]:
    """Continues every prompt of `source` with the student of the folder `model`; writes `output`, in order, whole.

    A prompt that leaves no room for `max_new_tokens` is not cut: its `response` is null and `reason` says why. Returns
    counts and times. Raises UserError for bad input, before any work.
    """
    check_writable("--output", output, file=True)
    check_rows(source, _FIELDS)
    tokenizer = text.load_tokenizer(model)
    stops = stop_ids(Path(model), tokenizer, options.text_format, options.stop)
    rows = list(read_rows(source, _FIELDS))
    prompts = _encode(tokenizer, rows, options.text_format)
    config, sampler = load_sampler(model, options.compute_dtype, options.tensor, options.batch)
    room = config.max_position_embeddings - options.max_new_tokens
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= room]
    results = {i: _without_room(len(prompts[i]), options) for i in set(range(len(rows))) - set(fitting)}
    started, tokens, too_long = time.monotonic(), 0, len(results)
    with atomic_file(output) as out, Bar("generating", len(rows), start=too_long) as bar:
        some = [prompts[i] for i in fitting]
        stream = sampler.stream(some, options.max_new_tokens, stops, options.sampling, seed=options.seed, rows=fitting)
        for i, one in stream:
            response = tokenizer.decode(one.tokens, skip_special_tokens=False)
            tokens += len(one.tokens)
            results[fitting[i]] = {
                "response": response, "tokens": len(one.tokens), "finish_reason": one.finish_reason,
            }  # fmt: skip
            bar.at(len(results), note=f"{tokens / (time.monotonic() - started):.0f} tokens/s")
        for i, row in enumerate(rows):
            out.write(to_line({**row, **results[i]}))
    seconds = round(time.monotonic() - started, 3)
    generated = len(rows) - too_long
    return {"rows": len(rows), "generated": generated, "too_long": too_long, "tokens": tokens, "seconds": seconds}


def _without_room(tokens: int, options: GenerateOptions) -> dict[str, Any]:
    reason = f"{tokens} prompt tokens leave no room for {options.max_new_tokens} new ones"
    return {"response": None, "tokens": None, "finish_reason": None, "reason": reason}


def stop_ids(folder: Path, tokenizer: Any, text_format: text.TextFormat, more: Sequence[str] = ()) -> list[int]:
    """Ids that end a response: the text format's end token, the folder's own, and the tokens in `more`."""
    vocabulary = tokenizer.get_vocab()
    for token in more:
        if token not in vocabulary:
            raise UserError(f"--stop: {token!r}: not one token of this tokenizer")
    ids = {vocabulary[token] for token in more}
    ids |= set(hf_folder.stop_token_ids(folder))
    return sorted(ids | {text.end_token_id(tokenizer, text_format)})


def load_sampler(model: str, compute_dtype: str = "", tensor: int = 1, slots: int = 8) -> tuple[StudentConfig, Sampler]:
    """The student of a Hugging Face folder on all devices, ready to generate.

    compute_dtype empty: float32 on a CPU, else bfloat16; tensor: devices that split heads; slots: rows at a time.
    """
    compute = compute_dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    mesh = make_mesh({"fsdp": -1, "tensor": tensor})
    config, _, params = from_hf(model, mesh, compute)
    return config, Sampler(config, params, ForwardOptions(compute, default_backend(), "none", mesh), slots)


def _encode(tokenizer: Any, rows: list[dict[str, Any]], text_format: text.TextFormat) -> list[list[int]]:
    texts = [text.prompt_text(tokenizer, row["prompt"], row.get("system", ""), text_format=text_format) for row in rows]
    return text.encode_prompts(tokenizer, texts)
