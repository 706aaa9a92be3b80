"""The token cache: every record tokenised once, content-addressed, resumable, memory-mapped.

A cache folder is named by all that decides its content (shard hashes, tokenizer, text format, version) and made of
parts of `PART_RECORDS` records; a part is a folder of .npy files that appears by rename, so a killed run goes on at the
next part. An SFT example is a group of one response and no pairs: both objectives share everything that follows.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogpo_jax.errors import UserError
from cogpo_jax.prompt_rows import windows
from cogpo_jax.records import Group, Response, SftExample, load_manifest, read_groups, read_sft
from cogpo_jax.records.schema import GAPS
from cogpo_jax.text import (
    TextFormat,
    encode_prompts,
    encode_responses,
    prompt_text,
    resolved,
    response_text,
    tokenizer_digest,
)

VERSION = 1
PART_RECORDS = 1024
_FIELDS = (
    ("tokens", np.int32),  # prompt ids, then each response's ids, group after group
    ("counted", np.uint8),  # 1 where a token's log-prob counts
    ("prompt_lengths", np.int32),  # per group
    ("response_counts", np.int32),  # per group
    ("pair_counts", np.int32),  # per group
    ("response_lengths", np.int32),  # per response, end token included
    ("counted_lengths", np.int32),  # per response, tokens that count
    ("chosen", np.int32),  # per pair, index into the group's responses
    ("rejected", np.int32),
    ("gaps", np.int8),  # per pair, index into GAPS
    ("betas", np.float32),  # per pair, NaN = from the config
    ("weights", np.float32),
)


@dataclasses.dataclass(frozen=True)
class TokenizedData:
    """All groups of a split as token ids; index arrays in memory, ids memory-mapped.

    Per group g: `names[g]`, `prompt_lengths[g]`, responses `response_offsets[g]:response_offsets[g + 1]`, pairs alike.
    Per response r: `lengths[r]` (prompt + response tokens), `counted_lengths[r]`, `digests[r]` (16 bytes of content).
    Per pair p: `chosen[p]`, `rejected[p]` (global response indices), `gaps[p]`, `betas[p]`, `weights[p]`.
    """

    names: Sequence[str]
    prompt_lengths: np.ndarray
    prompt_starts: np.ndarray
    response_offsets: np.ndarray
    response_starts: np.ndarray
    response_lengths: np.ndarray
    counted_lengths: np.ndarray
    group_of_response: np.ndarray
    digests: np.ndarray
    pair_offsets: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    gaps: np.ndarray
    betas: np.ndarray
    weights: np.ndarray
    digest: str
    _part_starts: Sequence[int]
    _tokens: Sequence[np.ndarray]
    _counted: Sequence[np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        """Prompt + response tokens of each response [R]."""
        return self.prompt_lengths[self.group_of_response] + self.response_lengths

    def _slice(self, arrays: Sequence[np.ndarray], start: int, length: int) -> np.ndarray:
        part = bisect_right(self._part_starts, start) - 1
        offset = start - self._part_starts[part]
        return arrays[part][offset : offset + length]

    def sequence(self, response: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids [L] int32, counted [L] bool) of prompt + response; prompt tokens never count."""
        group = self.group_of_response[response]
        start, length = self.response_starts[response], self.response_lengths[response]
        prompt = self._slice(self._tokens, self.prompt_starts[group], self.prompt_lengths[group])
        ids = np.concatenate([prompt, self._slice(self._tokens, start, length)])
        counted = np.zeros(len(ids), bool)
        counted[len(prompt) :] = self._slice(self._counted, start, length)
        return ids, counted


def tokenize_records(records: Iterable[Group], tokenizer: Any, text_format: TextFormat) -> TokenizedData:
    """Tokenises records in memory: for scoring and tests; training goes through `load_tokens`."""
    part = _tokenize_part(list(records), tokenizer, text_format)
    return _assemble([part])


def load_tokens(
    folder: str | os.PathLike[str],
    split: str,
    objective: str,
    tokenizer: Any,
    text_format: TextFormat,
    cache_dir: str | os.PathLike[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenizedData:
    """Opens (building or completing it first) the token cache of one split below local folder `cache_dir`.

    Reads `sft` records for objective sft, else `groups`. Raises UserError for missing or damaged records.
    """
    dataset = "sft" if objective == "sft" else "groups"
    manifest = load_manifest(folder)
    summary = manifest["datasets"].get(dataset, {}).get(split)
    if not summary or not summary["records"]:
        raise UserError(f"data: {folder}: has no {dataset} records of split {split!r} (objective {objective})")
    shards = {k: v["sha256"] for k, v in manifest["shards"].items() if k.startswith(f"{dataset}/{dataset}-{split}.")}
    key = hashlib.sha256(
        json.dumps([VERSION, PART_RECORDS, shards, tokenizer_digest(tokenizer, text_format)], sort_keys=True).encode()
    ).hexdigest()[:32]
    cache = Path(cache_dir) / key
    total = summary["records"]
    parts = -(-total // PART_RECORDS)
    missing = [i for i in range(parts) if not (cache / f"part-{i:06d}").is_dir()]
    if missing:
        records = read_groups(folder, split) if dataset == "groups" else map(as_group, read_sft(folder, split))
        for i, batch in enumerate(windows(records, PART_RECORDS)):
            if i in missing:
                _save_part(_tokenize_part(batch, tokenizer, text_format), cache / f"part-{i:06d}")
            progress(min((i + 1) * PART_RECORDS, total), total)
    return _assemble([_load_part(cache / f"part-{i:06d}") for i in range(parts)])


def as_group(example: SftExample) -> Group:
    """An SFT example as a group of one response and no pairs."""
    response = Response(
        id=example.id,
        parent=example.parent,
        origin=example.origin,
        model=example.model,
        thought=example.thought,
        solution=example.solution,
        text=example.text,
        kind="suitable",
        certificate="",
        loss_spans=example.loss_spans,
    )
    return Group(
        problem_id=example.problem_id,
        system=example.system,
        prompt=example.prompt,
        answer=example.answer,
        responses=(response,),
        pairs=(),
        messages=example.messages,
    )


def _tokenize_part(groups: list[Group], tokenizer: Any, text_format: TextFormat) -> dict[str, Any]:
    text_format = resolved(tokenizer, text_format)
    rendered, texts, spans = [], [], []
    for g in groups:
        try:
            rendered.append(prompt_text(tokenizer, g.prompt, g.system, g.messages, text_format=text_format))
            for r in g.responses:
                whole = r.thought, r.solution, r.text
                texts.append(response_text(*whole, text_format=text_format, prompt=rendered[-1]))
                cut = len(response_text(*whole, text_format=text_format)) - len(texts[-1]) if r.loss_spans else 0
                spans.append([(max(a - cut, 0), b - cut) for a, b in r.loss_spans if b > cut])
                if r.loss_spans and not spans[-1]:
                    raise UserError(f"loss_spans: {r.loss_spans}: within the <think> that the prompt has already")
        except UserError as error:
            raise UserError(f"{error} (record {g.problem_id!r})") from None
    prompts = encode_prompts(tokenizer, rendered)
    responses = encode_responses(tokenizer, texts, text_format=text_format)
    counted = [_counted(tokenizer, t, s, ids) for t, s, ids in zip(texts, spans, responses, strict=True)]

    out: dict[str, list[Any]] = {name: [] for name, _ in _FIELDS} | {"names": [], "digests": []}
    flat = zip(responses, counted, strict=True)
    for group, prompt in zip(groups, prompts, strict=True):
        if not prompt:
            raise UserError(f"prompt: empty in record {group.problem_id!r}: a response needs a token to follow")
        out["names"].append(group.problem_id)
        out["prompt_lengths"].append(len(prompt))
        out["response_counts"].append(len(group.responses))
        out["pair_counts"].append(len(group.pairs))
        out["tokens"].append(np.asarray(prompt, np.int32))
        out["counted"].append(np.zeros(len(prompt), np.uint8))
        for ids, count in itertools.islice(flat, len(group.responses)):
            out["response_lengths"].append(len(ids))
            out["counted_lengths"].append(int(count.sum()))
            out["tokens"].append(np.asarray(ids, np.int32))
            out["counted"].append(count)
            out["digests"].append(_digest(prompt, ids, count))
        for pair in group.pairs:
            values = (pair.chosen, pair.rejected, GAPS.index(pair.gap), pair.beta, pair.weight)
            for name, value in zip(("chosen", "rejected", "gaps", "betas", "weights"), values, strict=True):
                out[name].append(value)
    arrays: dict[str, Any] = {
        name: np.concatenate(out[name]) if name in ("tokens", "counted") else np.asarray(out[name], dtype)
        for name, dtype in _FIELDS
    }
    arrays["digests"] = np.frombuffer(b"".join(out["digests"]), np.uint8).reshape(-1, 16)
    arrays["names"] = out["names"]
    return arrays


def _counted(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], ids: list[int]) -> np.ndarray:
    """1 per token that counts: all of them, or those that overlap one of the character spans."""
    if not spans:
        return np.ones(len(ids), np.uint8)
    if spans[-1][1] > len(text):  # the rendered length depends on the text format, which the records do not know
        raise UserError(f"loss_spans: {spans[-1]}: must end within the response's {len(text)} characters")
    offsets = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    counted = [any(a < stop and b > start for start, stop in spans) for a, b in offsets]
    # The end token belongs to the last span where that span reaches the end of the text.
    return np.asarray([*counted, any(stop >= len(text) for _, stop in spans)], np.uint8)


def _digest(prompt: Sequence[int], ids: Sequence[int], counted: np.ndarray) -> bytes:
    h = hashlib.blake2b(digest_size=16)
    for part in (np.asarray([len(prompt)], np.int32), np.asarray(prompt, np.int32), np.asarray(ids, np.int32), counted):
        h.update(part.tobytes())
    return h.digest()


def _save_part(part: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, value in part.items():
            target = temporary / (f"{name}.json" if name == "names" else f"{name}.npy")
            with open(target, "wb") as f:
                if name == "names":
                    f.write(json.dumps(value).encode())
                else:
                    np.save(f, value, allow_pickle=False)
                f.flush()
                os.fsync(f.fileno())
        if not path.is_dir():  # another process of this host may have been faster
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load_part(path: Path) -> dict[str, Any]:
    part: dict[str, Any] = {"names": json.loads((path / "names.json").read_text())}
    for name in [n for n, _ in _FIELDS] + ["digests"]:
        part[name] = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return part


def _assemble(parts: list[dict[str, Any]]) -> TokenizedData:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([p[name] for p in parts])

    part_sizes = [len(p["tokens"]) for p in parts]
    part_starts = [0, *itertools.accumulate(part_sizes)][:-1]
    prompt_lengths, response_lengths = joined("prompt_lengths"), joined("response_lengths")
    response_counts, pair_counts = joined("response_counts"), joined("pair_counts")
    response_offsets, pair_offsets = _offsets(response_counts), _offsets(pair_counts)
    group_of_response = np.repeat(np.arange(len(prompt_lengths)), response_counts)
    # The ids lie group after group: prompt, then its responses.
    response_ends = np.cumsum(response_lengths, dtype=np.int64)
    prompt_ends = np.cumsum(prompt_lengths, dtype=np.int64)
    response_starts = response_ends - response_lengths + prompt_ends[group_of_response]
    before = np.concatenate([[0], response_ends])[response_offsets[:-1]]
    base = np.repeat(response_offsets[:-1], pair_counts)
    digests = joined("digests")
    h = hashlib.sha256(digests.tobytes())
    for name in ("chosen", "rejected", "gaps", "betas", "weights", "pair_counts"):
        h.update(joined(name).tobytes())
    return TokenizedData(
        names=[n for p in parts for n in p["names"]],
        prompt_lengths=prompt_lengths,
        prompt_starts=prompt_ends - prompt_lengths + before,
        response_offsets=response_offsets,
        response_starts=response_starts,
        response_lengths=response_lengths,
        counted_lengths=joined("counted_lengths"),
        group_of_response=group_of_response,
        digests=digests,
        pair_offsets=pair_offsets,
        chosen=joined("chosen") + base,
        rejected=joined("rejected") + base,
        gaps=joined("gaps"),
        betas=joined("betas"),
        weights=joined("weights"),
        digest=h.hexdigest(),
        _part_starts=part_starts,
        _tokens=[p["tokens"] for p in parts],
        _counted=[p["counted"] for p in parts],
    )


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def length_summary(data: TokenizedData) -> dict[str, int]:
    """Counts and percentiles of prompt + response tokens, for plan.json and the log."""
    lengths = data.lengths
    marks = {f"p{q}": int(np.percentile(lengths, q)) for q in (50, 90, 99)}
    return {"responses": len(lengths), "pairs": len(data.chosen), "max": int(lengths.max()), **marks}
