"""The epoch plan's promises, for any lengths: each pair once, fixed groups a step, no overlap, no host in sight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogpo_jax.data.plan import EpochPlan, Shape, default_shapes
from cogpo_jax.errors import UserError

TRIANGLE = ((0, 1), (1, 2), (0, 2))


def make_plan(groups, rows=4, length=64, **options):
    """A plan over groups [(lengths of the responses, pairs)]; shapes as the trainer makes them."""
    responses = np.cumsum([0, *(len(lengths) for lengths, _ in groups)])
    pairs = np.cumsum([0, *(len(p) for _, p in groups)])
    ends = [(responses[g] + a, responses[g] + b) for g, (_, p) in enumerate(groups) for a, b in p]
    chosen, rejected = np.array(ends, np.int64).reshape(-1, 2).T
    lengths = np.array([n for lengths, _ in groups for n in lengths], np.int64)
    options = {"groups_per_step": 3, "shapes": default_shapes(rows, length), "seed": 0} | options
    return EpochPlan(lengths, responses, pairs, chosen, rejected, **options)


@st.composite
def a_group(draw):
    """2 to 5 responses of 2 to 80 tokens (rows have 64), and any pairs between them."""
    lengths = draw(st.lists(st.integers(2, 80), min_size=2, max_size=5))
    every = [(a, b) for a in range(len(lengths)) for b in range(len(lengths)) if a != b]
    return lengths, draw(st.lists(st.sampled_from(every), min_size=1, max_size=6, unique=True))


# At least one group that fits: a plan of nothing is an error, tested apart.
GROUPS = st.lists(a_group(), min_size=1, max_size=12).map(lambda groups: [([9, 8, 7], TRIANGLE), *groups])


def steps(plan, epochs=1):
    return [plan.step(k) for k in range(epochs * plan.steps_per_epoch)]


def spans(micro, plan):
    """(row, first, stop) of each placement: a sequence takes a position less than it has tokens."""
    return [(p.row, p.start, p.start + int(plan._lengths[p.response]) - 1) for p in micro.placements]


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.sampled_from([2, 3, 4, 8]), st.integers(0, 2**31))
def test_every_usable_pair_once_an_epoch_in_rows_that_hold_it(groups, rows, seed):
    plan = make_plan(groups, rows=rows, seed=seed)
    fits = plan._lengths <= 64
    usable = np.flatnonzero(fits[plan._chosen] & fits[plan._rejected])
    for epoch in range(2):
        seen = []
        for step in (plan.step(epoch * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)):
            assert step.epoch == epoch
            for micro in step.micro_batches:
                assert micro.shape in plan.shapes
                assert len(micro.placements) <= plan.max_slots
                assert len(micro.pairs) <= plan.max_pairs
                for pair, chosen, rejected in micro.pairs:
                    assert micro.placements[chosen].response == plan._chosen[pair]
                    assert micro.placements[rejected].response == plan._rejected[pair]
                    seen.append(pair)
                taken = np.zeros((micro.shape.rows, micro.shape.length), int)
                for row, first, stop in spans(micro, plan):
                    assert 0 <= first < stop <= micro.shape.length
                    taken[row, first:stop] += 1
                assert taken.max() == 1
                assert taken.sum() == micro.tokens
        assert sorted(seen) == usable.tolist()


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.integers(1, 5))
def test_each_step_takes_exactly_its_groups_and_the_last_one_what_is_left(groups, groups_per_step):
    plan = make_plan(groups, groups_per_step=groups_per_step)
    counts = [len(step.groups) for step in steps(plan)]
    assert counts[:-1] == [groups_per_step] * (len(counts) - 1)
    assert 0 < counts[-1] <= groups_per_step
    assert sorted(np.concatenate([step.groups for step in steps(plan)])) == plan.groups.tolist()


@settings(max_examples=40, deadline=None)
@given(GROUPS, st.randoms(use_true_random=False))
def test_step_k_does_not_depend_on_what_was_asked_before(groups, random):
    want = steps(make_plan(groups), epochs=2)
    plan = make_plan(groups)
    order = list(range(len(want)))
    random.shuffle(order)
    for k in [*order, order[0]]:
        found = plan.step(k)
        assert found.groups.tolist() == want[k].groups.tolist()
        assert found.micro_batches == want[k].micro_batches


@settings(max_examples=40, deadline=None)
@given(GROUPS)
def test_groups_of_a_step_and_drops_do_not_depend_on_the_machine(groups):
    plans = [make_plan(groups, rows=rows, shapes=default_shapes(rows, 64, d)) for rows, d in ((2, 1), (16, 8), (64, 2))]
    for plan in plans[1:]:
        assert [s.groups.tolist() for s in steps(plan)] == [s.groups.tolist() for s in steps(plans[0])]
        assert plan.drops == plans[0].drops


@settings(max_examples=60, deadline=None)
@given(GROUPS)
def test_a_group_stays_in_one_micro_batch_unless_it_cannot(groups):
    plan = make_plan(groups, rows=2)
    for step in steps(plan):
        homes: dict[int, list] = {}
        for i, micro in enumerate(step.micro_batches):
            for pair, _, _ in micro.pairs:
                group = int(np.searchsorted(plan._pair_offsets, pair, side="right")) - 1
                homes.setdefault(group, []).append(i)
        assert sorted(homes) == sorted(step.groups)
        responses = [p.response for m in step.micro_batches for p in m.placements]
        repeated = len(responses) - len(set(responses))
        split = [g for g, places in homes.items() if len(set(places)) > 1]
        assert len(split) <= step.split_groups
        assert step.repeated_responses == repeated
        if not step.split_groups:
            assert repeated == 0


def test_a_group_larger_than_a_micro_batch_is_split_by_pairs_and_counted():
    # Three responses of 60 tokens want three rows of 64; a micro-batch has two.
    plan = make_plan([([60, 60, 60], TRIANGLE), ([5, 6, 7], TRIANGLE)], rows=2, groups_per_step=2)
    step = plan.step(0)
    assert (step.split_groups, step.repeated_responses) == (1, 3)
    assert sorted(pair for m in step.micro_batches for pair, _, _ in m.pairs) == list(range(6))
    assert (plan.split_groups, plan.repeated_responses) == (1, 3)  # of an epoch, however often a step is asked for


def test_what_is_dropped_is_counted_by_reason_and_depends_on_the_row_length_alone():
    groups = [([10, 100, 20], TRIANGLE), ([100, 100], ((0, 1),)), ([10, 20, 30], ((0, 1),))]
    plan = make_plan(groups)
    assert plan.drops == {
        "response_longer_than_row": 3,
        "pair_lost_a_response": 3,
        "group_without_pairs": 1,
        "response_without_pair": 1,
    }
    assert plan.groups.tolist() == [0, 2]
    for k, tokens in ((99, 3), (100, 0), (9, 6)):
        if tokens < 6:
            assert make_plan(groups, length=k).drops["response_longer_than_row"] == tokens
        else:
            with pytest.raises(UserError, match=r"rows.length: 9: leaves nothing to train on"):
                make_plan(groups, length=k)


def test_one_row_that_cannot_hold_a_pair_is_refused():
    groups = [([40, 30], ((0, 1),))]
    with pytest.raises(UserError, match=r"rows.per_device: 1: 1 pairs need two rows of 64"):
        make_plan(groups, rows=1)
    assert make_plan(groups, rows=2).step(0).micro_batches[0].tokens == 68


def test_the_shuffle_changes_with_the_seed_and_the_epoch():
    groups = [([5, 6], ((0, 1),))] * 40
    orders = [
        np.concatenate([make_plan(groups, seed=seed).step(e * 14 + i).groups for i in range(14)]).tolist()
        for seed, e in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(o) for o in orders}) == 3
    assert all(sorted(o) == list(range(40)) for o in orders)
    unshuffled = make_plan(groups, shuffle=False)
    assert np.concatenate([s.groups for s in steps(unshuffled)]).tolist() == list(range(40))


def test_examples_without_pairs_are_their_own_units():
    offsets = np.arange(11)
    none = np.empty(0, np.int64)
    lengths = np.full(10, 12)
    lengths[3] = 500
    plan = EpochPlan(
        lengths, offsets, np.zeros(11, int), none, none,
        groups_per_step=4, shapes=default_shapes(2, 64), seed=0, pairwise=False,
    )  # fmt: skip
    seen = [p.response for step in steps(plan) for m in step.micro_batches for p in m.placements]
    assert sorted(seen) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert [len(step.groups) for step in steps(plan)] == [4, 4, 1]
    assert plan.drops["group_without_responses"] == 1


def test_up_to_three_shapes_that_every_device_can_split():
    assert default_shapes(8, 1024, 2) == (Shape(8, 1024), Shape(4, 1024), Shape(2, 1024))
    assert default_shapes(4, 1024, 4) == (Shape(4, 1024), Shape(4, 512), Shape(4, 256))
    assert default_shapes(3, 100) == (Shape(3, 100),)


def long_cot_triangles(count, seed=0):
    """Lengths as real long chains of thought have them: median 1.2k tokens, p90 7.8k, all below 16k."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(np.log(1200), np.log(7800 / 1200) / 1.2816, (count, 3)))
    return [(row.tolist(), TRIANGLE) for row in np.clip(lengths, 40, 16_384).astype(int)]


def test_micro_batches_are_full_to_97_percent_but_the_last_of_a_step():
    plan = make_plan(long_cot_triangles(600), rows=16, length=16_384, groups_per_step=300)
    for k in range(2):
        micro_batches = plan.step(k).micro_batches
        assert len(micro_batches) >= 8
        assert min(m.fill for m in micro_batches[:-1]) >= 0.97
        assert sum(m.tokens for m in micro_batches) / sum(m.shape.tokens for m in micro_batches) >= 0.90
