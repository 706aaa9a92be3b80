"""One gradient, however computed: group or pairs, packed or not, accumulated or at once, reference live or cached."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.data.batches import Feed
from cogpo_jax.data.plan import EpochPlan, MicroBatch, Placement, Shape
from cogpo_jax.data.tokens import tokenize_records
from cogpo_jax.objective.cogpo import PreferenceOptions, finish
from cogpo_jax.records import read_groups
from cogpo_jax.sharding import make_mesh
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, init_params
from cogpo_jax.text import TextFormat, load_tokenizer
from cogpo_jax.training.settings import resolve_beta
from cogpo_jax.training.step import StepSettings, make_programs

ROWS, LENGTH, GROUPS = 4, 192, 6
SLOTS, PAIRS = 6 * GROUPS, 3 * GROUPS
BETAS = {"small": 0.1, "medium": 0.2, "large": 0.5, "default": 0.1}


@pytest.fixture(scope="module")
def groups(records):
    return list(read_groups(records))[:GROUPS]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="module")
def trainer(models):
    """trainer(data, micro_batches, reference) -> (loss, gradient, metrics), always through the same programs."""
    student = StudentConfig.from_hf(models["qwen2"])
    mesh = make_mesh({}, jax.devices()[:1])
    settings = StepSettings(student, ForwardOptions(mesh=mesh), "cogpo", PreferenceOptions(), 64, SLOTS)
    # Not the reference itself: at margins of 0 too much would agree by accident.
    reference, params = init_params(student, 0), init_params(student, 1)
    programs = make_programs(settings, None, params, None)

    def gradient(data, micro_batches, cached=True):
        plan = dataclasses.make_dataclass("Bounds", ["max_pairs"])(PAIRS)
        data = dataclasses.replace(data, betas=resolve_beta("cogpo", BETAS, data.gaps, data.betas))
        feed = Feed(data, plan, mesh, slots=SLOTS, pairs=True)
        divisor = jnp.float32(sum(map(feed.normalizer, micro_batches)))
        logps = np.full(len(data.digests), np.nan, np.float32)
        for micro in micro_batches:
            placed = [p.response for p in micro.placements]
            logps[placed] = programs.score(reference, feed.rows(micro))[0][: len(placed)]
        if cached:
            feed = Feed(data, plan, mesh, slots=SLOTS, pairs=True, reference=logps)
        gradients, metrics = programs.start(params)
        for micro in micro_batches:
            batch = feed.batch(micro)
            if not cached:
                batch = dataclasses.replace(batch, reference_logps=programs.score(reference, batch.rows)[0])
            gradients, metrics = programs.accumulate(params, gradients, metrics, batch, divisor)
        gradients, metrics = jax.device_get((gradients, metrics))
        return metrics["objective"]["all"][0] / divisor, gradients, finish(metrics)

    return gradient


def planned(data, groups_per_step=GROUPS, rows=ROWS):
    plan = EpochPlan(
        data.lengths,
        data.response_offsets,
        data.pair_offsets,
        data.chosen,
        data.rejected,
        groups_per_step=groups_per_step,
        shapes=[Shape(rows, LENGTH)],
        seed=0,
    )
    assert plan.steps_per_epoch == 1
    return plan.step(0).micro_batches


@pytest.fixture(scope="module")
def data(groups, tokenizer):
    return tokenize_records(groups, tokenizer, TextFormat())


@pytest.fixture(scope="module")
def packed(trainer, data):
    micro_batches = planned(data)
    assert len(micro_batches) > 1
    assert max(p.start for m in micro_batches for p in m.placements) > 0
    return trainer(data, micro_batches)


def assert_same(found, want):
    np.testing.assert_allclose(found[0], want[0], rtol=1e-6)
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(want[1]))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * largest)  # noqa: E731
    jax.tree.map(close, found[1], want[1])
    for name in ("margin", "accuracy", "reward_margin", "chosen_logratio", "rejected_logratio", "kl"):
        for gap, value in want[2][name].items():
            np.testing.assert_allclose(found[2][name][gap], value, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_of_some_size(packed):
    assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(packed[1]))


def test_groups_equal_pairs_trained_apart(trainer, packed, groups, tokenizer):
    """Each pair a group of its own: its two responses go through the model once more."""
    apart = []
    for group in groups:
        for i, pair in enumerate(group.pairs):
            two = (group.responses[pair.chosen], group.responses[pair.rejected])
            alone = dataclasses.replace(pair, chosen=0, rejected=1)
            name = f"{group.problem_id}-{i}"
            apart.append(dataclasses.replace(group, problem_id=name, responses=two, pairs=(alone,)))
    pairwise = tokenize_records(apart, tokenizer, TextFormat())
    assert len(pairwise.digests) == 36
    assert_same(trainer(pairwise, planned(pairwise, groups_per_step=len(apart))), packed)


def test_packed_equals_a_row_for_each_response(trainer, packed, data):
    unpacked = []
    for g in range(GROUPS):
        responses = range(data.response_offsets[g], data.response_offsets[g + 1])
        placements = tuple(Placement(r, row, 0) for row, r in enumerate(responses))
        pairs = tuple(
            (p, int(data.chosen[p]) - responses[0], int(data.rejected[p]) - responses[0])
            for p in range(data.pair_offsets[g], data.pair_offsets[g + 1])
        )
        unpacked.append(MicroBatch(Shape(ROWS, LENGTH), placements, pairs, int(data.lengths[responses].sum()) - 3))
    assert_same(trainer(data, unpacked), packed)


def test_accumulated_equals_one_batch(trainer, packed, data):
    micro_batches = planned(data, rows=3 * ROWS)
    assert len(micro_batches) == 1
    assert_same(trainer(data, micro_batches), packed)


def test_a_live_reference_equals_a_cached_one_bit_for_bit(trainer, packed, data):
    live = trainer(data, planned(data), cached=False)
    assert live[0] == packed[0]
    jax.tree.map(np.testing.assert_array_equal, live[1], packed[1])
    assert live[2] == packed[2]


def test_a_group_split_over_micro_batches_equals_the_whole(trainer, packed, data):
    """As the plan does with a group that no micro-batch holds: by pairs, shared responses repeated."""
    split = []
    for p in range(len(data.chosen)):
        pair = int(data.chosen[p]), int(data.rejected[p])
        placements = tuple(Placement(r, row, 0) for row, r in enumerate(pair))
        split.append(MicroBatch(Shape(ROWS, LENGTH), placements, ((p, 0, 1),), int(data.lengths[list(pair)].sum()) - 2))
    assert_same(trainer(data, split), packed)
