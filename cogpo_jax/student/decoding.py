"""The sampler: continuous batching. `slots` rows are decoded together; a slot whose row ends gets the next prompt.

A prompt is prefilled in chunks into a cache of its own and copied into its slot. What all prompts begin with is
computed once, and so is a prompt that is asked for many samples. The decoding program always has the same shape, so
that a row's tokens do not depend on its neighbours.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from cogpo_jax.errors import UserError
from cogpo_jax.sharding import row_shards, sharding
from cogpo_jax.student import kv_cache
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.kv_cache import Cache
from cogpo_jax.student.model import ForwardOptions
from cogpo_jax.student.sampling import GREEDY, Sampling, check_seed, next_tokens, row_keys
from cogpo_jax.student.weights import to_host

CHUNK = 64  # tokens decoded at most in one call of the compiled loop
PREFILL = 512  # tokens of a prompt fed at once
SLOTS = 16  # with 9 rows or more, XLA's CPU products give a row the same bits in any number of rows
_NARROWEST = 16  # tokens of the narrowest prefill program
_SHARED = 64  # a prefix of all prompts is worth a prefill of its own from so many tokens on
_ROOM = 1024  # tokens that each slot's cache has room for at first


@dataclasses.dataclass(frozen=True)
class Generated:
    """Tokens of one prompt, the stop token not among them, and why they end: stop | length."""

    tokens: list[int]
    finish_reason: str


class Sampler:
    """A student that speaks: its weights layer by layer on a mesh, and the compiled prefill and decode.

    Takes the nested dict of parameters (which it does not keep) and holds a copy of its own in the compute dtype.
    slots: rows decoded at a time, rounded up to what the mesh's row shards divide.
    """

    def __init__(self, config: StudentConfig, params: Any, options: ForwardOptions, slots: int = SLOTS):
        self.config, self.options = config, options
        self.shards = row_shards(options.mesh) if options.mesh else 1
        self.slots = -(-slots // self.shards) * self.shards
        self.rest, self.layers = kv_cache.unstack(config, params, options)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        stop_tokens: Sequence[int],
        sampling: Sampling = GREEDY,
        *,
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ) -> list[Generated]:
        """What `stream` gives, in the order of the prompts."""
        done = dict(self.stream(prompts, max_new_tokens, stop_tokens, sampling, seed=seed, rows=rows))
        return [done[i] for i in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        stop_tokens: Sequence[int],
        sampling: Sampling = GREEDY,
        *,
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Generated]]:
        """Continues each prompt (token ids) until a stop token or `max_new_tokens` (one number, or one per prompt).

        Gives (index into `prompts`, what it got) as rows finish, in no order. rows: each prompt's number (default 0, 1,
        ...), which with the seed decides what it draws, with any neighbours. Raises UserError at the call for an empty
        prompt or one that leaves no room.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        self._check(prompts, limits)
        numbers = range(len(prompts)) if rows is None else rows
        waiting = [
            _Row(i, number, tuple(prompt), limit)
            for i, (number, prompt, limit) in enumerate(zip(numbers, prompts, limits, strict=True))
        ]
        check_seed(seed)
        return _Run(self, waiting, stop_tokens, sampling, seed).results()

    def _check(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> None:
        positions = self.config.max_position_embeddings
        for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            if limit < 1:
                raise UserError(f"max_new_tokens: {limit}: must be at least 1")
            if not len(prompt):
                raise UserError(f"prompt {i}: empty; must have at least one token")
            if len(prompt) + limit > positions:
                raise UserError(
                    f"prompt {i}: {len(prompt)} tokens and max_new_tokens={limit}: "
                    f"more than the student's {positions} positions"
                )


@dataclasses.dataclass
class _Row:
    """A prompt that waits or is in a slot."""

    index: int
    number: int
    prompt: tuple[int, ...]
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)

    @property
    def position(self) -> int:
        """Of its last token, which is chosen and not yet in the cache."""
        return len(self.prompt) + len(self.tokens) - 1

    def take(self, token: int, stops: frozenset[int]) -> Generated | None:
        """Adds a token; the finished row where it was the last one."""
        if token in stops:
            return Generated(self.tokens, "stop")
        self.tokens.append(token)
        return Generated(self.tokens, "length") if len(self.tokens) == self.limit else None


@dataclasses.dataclass(frozen=True)
class _Prefilled:
    """One prompt for each row shard, fed: their cache and the last token's hidden state [R, D]."""

    prompts: list[tuple[int, ...]]
    cache: Cache
    hidden: Array | None


class _Run:
    """One call of `Sampler.stream`: the queue, the slots and their cache."""

    def __init__(
        self, sampler: Sampler, waiting: list[_Row], stops: Sequence[int], sampling: Sampling, seed: int
    ) -> None:
        self._sampler, self._sampling, self._seed = sampler, sampling, seed
        self._stops = frozenset(stops)
        self._waiting = collections.deque(_equal_prompts_together(waiting))
        self._slots: list[_Row | None] = [None] * sampler.slots
        self._most = max((len(row.prompt) + row.limit for row in waiting), default=1)
        self._cache: Cache = ()
        self._prefix: _Prefilled | None = None
        self._ready: _Prefilled | None = None

    def results(self) -> Iterator[tuple[int, Generated]]:
        """Each row as it finishes."""
        s = self._sampler
        if self._waiting:
            self._cache = kv_cache.empty_cache(s.config, s.slots, min(self._most, _ROOM), s.options)
            self._prefix = self._shared_prefix()
        while self._waiting or any(self._slots):
            yield from self._fill()
            self._halve()
            if any(self._slots):
                yield from self._decode()

    def _fill(self) -> Iterator[tuple[int, Generated]]:
        """Prefills waiting prompts, one for each row shard at a time, until no slot is free."""
        while self._waiting and (free := self._free_slots()):
            rows = dict(zip(free, self._next_rows(len(free)), strict=False))
            prompts = [rows[d].prompt if d in rows else next(iter(rows.values())).prompt for d in self._shards]
            if self._ready is None or any(self._ready.prompts[d] != row.prompt for d, row in rows.items()):
                self._ready = None  # its memory is free before the next one needs some
                self._ready = self._prefill(prompts, self._prefix)
            first = self._first_tokens(self._ready, [rows[d].number if d in rows else 0 for d in self._shards])
            slots = np.full(len(self._shards), -1, np.int32)
            for d, row in rows.items():
                if done := row.take(int(first[d]), self._stops):
                    yield row.index, done
                else:
                    self._slots[free[d]] = row
                    slots[d] = free[d] - d * self._per_shard
            self._make_room(kv_cache.size_of(self._ready.cache))
            self._cache = kv_cache.insert(self._cache, self._ready.cache, self._put(slots), self._sampler.options.mesh)

    def _halve(self) -> None:
        """Half the slots, where no row waits and the live ones fit: on a CPU a step takes as long as it has rows."""
        live = [i for i, row in enumerate(self._slots) if row]
        if live and not self._waiting and len(live) <= self._half:
            kept = (live + [i for i, row in enumerate(self._slots) if not row])[: self._half]
            self._cache = jax.tree.map(lambda x: x[np.array(kept)], self._cache)
            self._slots = [self._slots[i] for i in kept]

    @property
    def _half(self) -> int:
        """Slots after a halving: never below SLOTS, so that a row's bits stay; 0 where it does not pay."""
        half = len(self._slots) // 2
        return half if half >= SLOTS and len(self._shards) == 1 and jax.default_backend() == "cpu" else 0

    @property
    def _shards(self) -> range:
        return range(self._sampler.shards)

    @property
    def _per_shard(self) -> int:
        return self._sampler.slots // self._sampler.shards

    def _free_slots(self) -> dict[int, int]:
        """Row shard -> its first free slot, where it has one."""
        free = {i // self._per_shard: i for i, row in reversed(list(enumerate(self._slots))) if row is None}
        return dict(sorted(free.items()))

    def _next_rows(self, most: int) -> list[_Row]:
        """Off the queue: samples of one prompt, which all shards then prefill; or different prompts, one for each."""
        rows = [self._waiting.popleft()]
        repeated = bool(self._waiting) and self._waiting[0].prompt == rows[0].prompt
        while self._waiting and len(rows) < most:
            following = self._waiting[0].prompt
            again = len(self._waiting) > 1 and self._waiting[1].prompt == following
            if (following != rows[0].prompt) if repeated else again:
                break
            rows.append(self._waiting.popleft())
        return rows

    def _shared_prefix(self) -> _Prefilled | None:
        """What all prompts begin with, fed once, where that is long and there is more than one prompt."""
        prompts = {row.prompt for row in self._waiting}
        length = min(_common(min(prompts), max(prompts)), min(map(len, prompts)) - 1)  # a token must be left
        if len(prompts) == 1 or length < _SHARED:
            return None
        return self._prefill([next(iter(prompts))[:length]] * len(self._shards), None)

    def _prefill(self, prompts: list[tuple[int, ...]], prefix: _Prefilled | None) -> _Prefilled:
        """Feeds one prompt for each row shard, chunk by chunk, behind the prefix that they share."""
        s, place = self._sampler, {"config": self._sampler.config, "options": self._sampler.options}
        start, longest = len(prefix.prompts[0]) if prefix else 0, max(map(len, prompts))
        starts = list(range(start, longest, PREFILL))
        widths = [min(PREFILL, _width(longest - at, _NARROWEST)) for at in starts]
        shape = s.config, len(prompts), starts[-1] + widths[-1], s.options
        if prefix:  # copied: the layers below take theirs over
            cache = kv_cache.extended(jax.tree.map(jnp.copy, prefix.cache), *shape)
        else:
            cache = kv_cache.empty_cache(*shape)
        layers, hidden = list(cache), None
        for at, width in zip(starts, widths, strict=True):
            tokens = np.zeros((len(prompts), width), np.int32)
            for row, prompt in zip(tokens, prompts, strict=True):
                row[: len(prompt[at : at + width])] = prompt[at : at + width]
            x = kv_cache.embed_tokens(s.rest, s.layers[0], self._put(tokens), **place)
            begin = self._put(np.full(len(prompts), at, np.int32))
            for i, layer in enumerate(s.layers):
                x, layers[i] = kv_cache.prefill_layer(s.rest, layer, x, layers[i], begin, **place)
            last = self._put(np.array([len(prompt) - 1 - at for prompt in prompts], np.int32))
            hidden = _pick(x, last, x[:, 0] if hidden is None else hidden)
        return _Prefilled(prompts, tuple(layers), hidden)

    def _first_tokens(self, ready: _Prefilled, numbers: list[int]) -> np.ndarray:
        s = self._sampler
        keys = row_keys(self._seed, self._put(np.array(numbers, np.int32)))
        return to_host(_first(s.rest, s.layers[0], ready.hidden, keys, s.config, self._sampling))

    def _decode(self) -> Iterator[tuple[int, Generated]]:
        """Decodes until a row ends that a waiting one could replace, or CHUNK tokens."""
        s, rows = self._sampler, list(self._slots)
        fields = {
            "last": [row.tokens[-1] if row else 0 for row in rows],
            "position": [row.position if row else 0 for row in rows],
            "made": [len(row.tokens) if row else 0 for row in rows],
            "limit": [row.limit if row else 0 for row in rows],
            "live": [row is not None for row in rows],
        }
        self._make_room(min(max(row.position for row in rows if row) + CHUNK, self._most))
        keys = row_keys(self._seed, self._put(np.array([row.number if row else 0 for row in rows], np.int32)))
        stops = jnp.asarray(sorted(self._stops) or [-1], jnp.int32)
        live = sum(row is not None for row in rows)
        enough = jnp.int32(live - max(1, live // 16) if self._waiting else self._half)
        slots = _Slots(**{name: self._put(np.array(values)) for name, values in fields.items()})
        self._cache, out, steps = _decode(
            s.rest, s.layers, self._cache, slots, keys, stops, enough, s.config, s.options, self._sampling
        )
        tokens = to_host(out)[:, : int(steps)].tolist()
        for i, row in enumerate(rows):
            if row is None:
                continue
            for token in tokens[i]:
                if done := row.take(token, self._stops):
                    self._slots[i] = None
                    yield row.index, done
                    break

    def _make_room(self, needed: int) -> None:
        """A cache of at least `needed` tokens a slot: doubled, so that few sizes are compiled."""
        s, have = self._sampler, kv_cache.size_of(self._cache)
        if have < needed:
            room = max(needed, min(2 * have, self._most))
            self._cache = kv_cache.extended(self._cache, s.config, len(self._slots), room, s.options)

    def _put(self, x: np.ndarray) -> Array:
        mesh = self._sampler.options.mesh
        return jax.device_put(x, sharding(mesh, "rows") if mesh else None)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["last", "position", "made", "limit", "live"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class _Slots:
    """What decoding knows of each slot."""

    last: Int[Array, " B"]  # the token chosen last, not yet fed
    position: Int[Array, " B"]  # its position
    made: Int[Array, " B"]  # tokens chosen so far
    limit: Int[Array, " B"]  # and at most
    live: Array  # [B] bool


@functools.partial(jax.jit, static_argnames=("config", "options", "sampling"), donate_argnames="cache")
def _decode(
    rest: Any,
    layers: Sequence[Any],
    cache: Cache,
    slots: _Slots,
    keys: Array,
    stops: Int[Array, " n"],
    enough: Int[Array, ""],
    config: StudentConfig,
    options: ForwardOptions,
    sampling: Sampling,
) -> tuple[Cache, Int[Array, "B CHUNK"], Array]:
    """(cache, tokens, number of steps): feeds and chooses until CHUNK tokens or no more than `enough` live rows."""

    def body(carry: tuple[Cache, _Slots, Array, Array]) -> tuple[Cache, _Slots, Array, Array]:
        cache, slots, out, step = carry
        bound = jnp.max(jnp.where(slots.live, slots.position, 0)) + 1
        x, cache = kv_cache.extend(rest, layers, cache, slots.last[:, None], slots.position, bound, config, options)
        student = kv_cache.whole_student(config, rest, layers[0])
        token = next_tokens(student.logits(student.norm(x[:, 0])), keys, slots.made, sampling)
        out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], step, axis=1)
        went = slots.live.astype(jnp.int32)  # a row that has ended stays where it is
        live = slots.live & ~jnp.isin(token, stops) & (slots.made + 1 < slots.limit)
        slots = _Slots(token, slots.position + went, slots.made + went, slots.limit, live)
        return cache, slots, out, step + 1

    def goes_on(carry: tuple[Cache, _Slots, Array, Array]) -> Array:
        return (carry[3] < CHUNK) & (carry[1].live.sum() > enough)

    out = jnp.zeros((slots.last.shape[0], CHUNK), jnp.int32)
    cache, _, out, steps = jax.lax.while_loop(goes_on, body, (cache, slots, out, jnp.int32(0)))
    return cache, out, steps


@functools.partial(jax.jit, static_argnames=("config", "sampling"))
def _first(rest: Any, layer: Any, hidden: Array, keys: Array, config: StudentConfig, sampling: Sampling) -> Array:
    student = kv_cache.whole_student(config, rest, layer)
    steps = jnp.zeros(hidden.shape[0], jnp.int32)
    return next_tokens(student.logits(student.norm(hidden)), keys, steps, sampling)


@jax.jit
def _pick(x: Array, last: Array, before: Array) -> Array:
    """x[row, last[row]] where that is inside x, else what there was `before`."""
    inside = (last >= 0) & (last < x.shape[1])
    picked = jnp.take_along_axis(x, jnp.clip(last, 0, x.shape[1] - 1)[:, None, None], axis=1)[:, 0]
    return jnp.where(inside[:, None], picked, before)


def _equal_prompts_together(rows: list[_Row]) -> list[_Row]:
    """The rows in order, each followed by the others of its prompt, so that few prompts' caches are kept at a time."""
    by_prompt: dict[tuple[int, ...], list[_Row]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row)
    return [row for same in by_prompt.values() for row in same]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two prompts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _width(tokens: int, narrowest: int) -> int:
    """The width of a program for so many tokens: at most a quarter wider, so that few widths are compiled."""
    step = max(narrowest, 1 << max(0, tokens.bit_length() - 3))
    return -(-tokens // step) * step
