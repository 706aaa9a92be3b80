"""A micro-batch's arrays, checked against its plan and its data."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from cogpo_jax.data.batches import pack_pairs, pack_rows, prefetch
from cogpo_jax.data.plan import MicroBatch, Placement, Shape

IDS = {0: np.arange(10, 17), 1: np.arange(30, 35), 2: np.arange(50, 54)}
PROMPT = {0: 3, 1: 2, 2: 1}
MICRO = MicroBatch(
    Shape(2, 12), (Placement(2, 1, 0), Placement(0, 0, 0), Placement(1, 0, 6)), ((1, 1, 0), (0, 2, 1)), 13
)
DATA = SimpleNamespace(
    gaps=np.array([0, 2, 1], np.int8),
    betas=np.array([0.1, 0.5, 0.2], np.float32),
    weights=np.array([1.0, 0.25, 3.0], np.float32),
)


def sequence(response):
    ids = IDS[response]
    return ids, np.arange(len(ids)) >= PROMPT[response]


def test_rows_hold_each_sequence_apart():
    rows = pack_rows(MICRO, sequence)
    np.testing.assert_array_equal(rows.tokens[0], [10, 11, 12, 13, 14, 15, 30, 31, 32, 33, 0, 0])
    np.testing.assert_array_equal(rows.targets[0], [11, 12, 13, 14, 15, 16, 31, 32, 33, 34, 0, 0])
    np.testing.assert_array_equal(rows.segment_ids[0], [1] * 6 + [2] * 4 + [0, 0])
    np.testing.assert_array_equal(rows.positions[0], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 0])
    np.testing.assert_array_equal(rows.slots[0], [-1, -1, 1, 1, 1, 1, -1, 2, 2, 2, -1, -1])
    np.testing.assert_array_equal(rows.tokens[1, :4], [50, 51, 52, 0])
    np.testing.assert_array_equal(pack_rows(MICRO, sequence, rows=[1]).tokens[0], rows.tokens[1])


def test_pairs_carry_their_own_values_and_padding_weighs_nothing():
    batch = pack_pairs(MICRO, pack_rows(MICRO, sequence), DATA, max_slots=5, max_pairs=4)
    np.testing.assert_array_equal(batch.chosen, [1, 2, 0, 0])
    np.testing.assert_array_equal(batch.rejected, [0, 1, 0, 0])
    np.testing.assert_array_equal(batch.gap, [2, 0, 3, 3])
    np.testing.assert_array_equal(batch.beta, np.float32([0.5, 0.1, 1, 1]))
    np.testing.assert_array_equal(batch.weight, np.float32([0.25, 1, 0, 0]))


def test_a_slot_has_its_responses_reference():
    logps = np.array([-7.0, -5.0, -4.0], np.float32)
    batch = pack_pairs(MICRO, pack_rows(MICRO, sequence), DATA, max_slots=5, max_pairs=4, reference=logps)
    np.testing.assert_array_equal(batch.reference_logps, [-4, -7, -5, 0, 0])


def test_prefetched_items_come_in_order_and_no_further_ahead_than_asked():
    made = []
    items = prefetch(range(9), lambda item: made.append(item) or item * item, depth=2)
    assert next(items) == (0, 0)
    assert list(items) == [(i, i * i) for i in range(1, 9)]
    ahead, first = threading.Semaphore(0), []

    def make(item):
        ahead.release()
        first.append(item)
        return item

    items = prefetch(range(100), make, depth=2)
    next(items)
    for _ in range(3):  # the one that was taken and two more are made
        ahead.acquire(timeout=10)
    items.close()
    assert len(first) <= 5  # two wait, one is being put, one is being made
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_error_is_raised_where_its_item_is_due():
    def make(item):
        if item == 2:
            raise ValueError("no rows")
        return item

    items = prefetch(range(4), make, depth=3)
    assert [next(items), next(items)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="no rows"):
        next(items)
