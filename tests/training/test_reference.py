"""The reference cache: by content, resumable, and never another reference's or a damaged file's numbers."""

import numpy as np
import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.training.scoring import ReferenceCache, reference_key

KEY = reference_key("weights", "float32", "xla")
RNG = np.random.default_rng(0)
DIGESTS = RNG.integers(0, 256, (6, 16)).astype(np.uint8)
DIGESTS[0, -1] = 0  # numpy's byte strings drop trailing zeros
LOGPS = RNG.normal(-50, 5, 6).astype(np.float32)
TOKENS = np.arange(6, dtype=np.int32)


@pytest.fixture
def cache(tmp_path):
    cache = ReferenceCache(tmp_path, KEY)
    cache.add(DIGESTS[:3], LOGPS[:3], TOKENS[:3])
    cache.add(DIGESTS[3:5], LOGPS[3:5], TOKENS[3:5])
    return cache


def test_what_was_added_is_found_by_content_now_and_by_the_next_run(cache, tmp_path):
    for found in (cache, ReferenceCache(tmp_path, KEY)):
        logps, tokens = found.lookup(DIGESTS[[4, 0, 5, 2]])
        np.testing.assert_array_equal(logps, [LOGPS[4], LOGPS[0], np.nan, LOGPS[2]])
        assert tokens.tolist() == [4, 0, 0, 2]


@pytest.mark.parametrize(
    "other",
    [
        reference_key("other weights", "float32", "xla"),
        reference_key("weights", "bfloat16", "xla"),
        reference_key("weights", "float32", "splash"),
        KEY | {"numerics": 0},
    ],
    ids=str,
)
def test_other_weights_or_numerics_find_nothing(cache, tmp_path, other):
    assert np.isnan(ReferenceCache(tmp_path, other).lookup(DIGESTS)[0]).all()


def test_a_folder_that_holds_another_reference_is_refused(cache, tmp_path):
    meta = cache.folder / "meta.json"
    meta.write_text(meta.read_text().replace('"weights"', '"other"', 1))
    with pytest.raises(UserError, match=r"reference_cache.dir: .*: holds another reference's log-probs"):
        ReferenceCache(tmp_path, KEY)


@pytest.mark.parametrize("byte", [5, 140, -3])
def test_a_damaged_part_is_named_and_its_responses_computed_again(cache, tmp_path, byte):
    first = max(cache.folder.glob("part-*.npy"), key=lambda p: p.stat().length)
    data = bytearray(first.read_bytes())
    data[byte] ^= 16
    first.write_bytes(data)
    said = []
    again = ReferenceCache(tmp_path, KEY, said.append)
    assert [first.name in line and "damaged" in line for line in said] == [True]
    logps, _ = again.lookup(DIGESTS)
    assert np.isnan(logps[[0, 1, 2, 5]]).all()
    again.add(DIGESTS[:3], LOGPS[:3], TOKENS[:3])
    said.clear()
    np.testing.assert_array_equal(ReferenceCache(tmp_path, KEY, said.append).lookup(DIGESTS[:5])[0], LOGPS[:5])


def test_a_torn_part_is_left_out(cache, tmp_path):
    part = min(cache.folder.glob("part-*.npy"))
    part.write_bytes(part.read_bytes()[:-7])
    assert np.isnan(ReferenceCache(tmp_path, KEY, lambda line: None).lookup(DIGESTS)[0]).sum() >= 3


def test_a_log_prob_that_is_not_finite_is_refused(cache):
    with pytest.raises(UserError, match="a log-prob is not finite"):
        cache.add(DIGESTS[5:], np.array([np.nan], np.float32), TOKENS[5:])


def test_a_response_added_twice_keeps_its_first_number(cache, tmp_path):
    cache.add(DIGESTS[:1], LOGPS[:1], TOKENS[:1])
    assert len(cache._entries) == 5
