"""The reference of a run: its own first weights, read from the cache or kept live."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogpo_jax.data.feed import Feed
from cogpo_jax.data.plan import EpochPlan
from cogpo_jax.data.tokens import TokenizedData
from cogpo_jax.errors import UserError
from cogpo_jax.progress import Bar, say
from cogpo_jax.training import hosts
from cogpo_jax.training.checksum import tree_digest
from cogpo_jax.training.reference import ReferenceCache, reference_key
from cogpo_jax.training.scoring import drift, fill_reference
from cogpo_jax.training.setup import Setup


class ReferenceModel:
    """`digest` names the reference's weights; first_params(): the policy's, while it is the reference, else None.

    before_each is called at each micro-batch of a pass; what it raises ends the pass, whose results so far are kept.
    """

    def __init__(
        self, setup: Setup, digest: str, first_params: Callable[[], Any], before_each: Callable[[], None] = lambda: None
    ):
        self._setup, self._digest, self._first_params = setup, digest, first_params
        self._before_each = before_each

    def params(self) -> Any:
        """The reference's weights, loaded again where training has moved on; UserError where they have changed."""
        if (first := self._first_params()) is not None:
            return first
        params = self._setup.initial.load(self._setup.mesh)
        if tree_digest(params) != self._digest:
            raise UserError(f"init_from: {self._setup.config.init_from}: its weights changed since this run began")
        return params

    def live(self) -> Any:
        """Weights of its own to run beside the policy: the policy's buffers are donated by the first update."""
        return jax.tree.map(jnp.copy, self.params())

    def logps(self, data: TokenizedData, plan: EpochPlan, steps: int, what: str) -> np.ndarray:
        """Summed log-probs [R] for the first `steps` steps of a plan, from the cache or computed into it."""
        setup = self._setup
        folder = setup.config.reference_cache.dir or setup.workdir / "reference_cache"
        key = reference_key(self._digest, setup.config.compute_dtype, setup.settings.forward.attention)
        cache = ReferenceCache(folder, key, say)
        # What is missing is scored by all hosts together: they must miss the same.
        known = hashlib.sha256(cache.lookup(data.digests)[0].tobytes()).hexdigest()
        hosts.check_same({f"reference cache in {folder}": known})
        feed = Feed(data, plan, setup.mesh, slots=plan.max_slots)
        with Bar(f"reference, {what}", 1, quiet=not setup.main) as bar:
            score = setup.score_program(plan)
            return fill_reference(cache, score, self.params, data, plan, feed, steps, bar.at, self._before_each)

    def check_drift(self, reference: np.ndarray) -> None:
        """Before the first step policy and reference are one model: cached and live log-probs must agree."""
        setup = self._setup
        most = setup.config.reference_cache.max_drift
        feed = Feed(setup.data, setup.plan, setup.mesh, slots=setup.plan.max_slots)
        found = drift(setup.programs.score, self.params(), feed, setup.plan, reference)
        say(f"reference: cached log-probs are within {found:.2g} nats of live ones (at most {most} accepted)")
        if not found <= most:
            raise UserError(
                f"reference_cache.max_drift: {most}: cached log-probs differ from live ones by {found:.3g} nats; "
                "raise the bound, or give an empty reference_cache.dir"
            )
