"""The CRV section's figures: medians, titles, proofs in words."""

import statistics
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cogpo_jax.report.crv_section import MOST_CHARACTERS, Text, columns, median, proof_words


@given(st.lists(st.integers(1, 50), min_size=1))
def test_themedian_is_that_of_the_list(sizes):
    assert median(Counter(sizes)) == statistics.median_low(sizes)


def text(name, body, kind="suitable", parent=""):
    return Text(name, parent, kind, "teacher", "m", body, {})


def test_the_original_shows_what_its_rewrite_left_out_and_the_rewrite_what_came():
    shown = columns(
        [
            text("original", "we add two and two to get 4", "easy"),
            text("rewrite-2", "we add two and then two to get 4", parent="original"),
            text("wrong-0", "we add two and then two to get 5", "incorrect", parent="rewrite-2"),
        ]
    )
    assert [column["title"] for column in shown] == ["Original", "Rewrite, round 2", "Corrupted 1"]
    assert [column["from"] for column in shown] == ["", "original", "rewrite, round 2"]
    assert "<" not in shown[0]["text"]
    assert shown[1]["text"] == "we add two and <ins>then</ins> two to get 4"
    assert shown[2]["text"].endswith("<ins>5</ins>")


def test_a_very_long_text_is_cut_and_the_cut_is_told():
    (column,) = columns([text("original", "a" * (MOST_CHARACTERS + 7))])
    assert (len(column["text"]), column["cut"]) == (MOST_CHARACTERS, 7)


def test_a_proof_in_words():
    proof = {"verdict": "correct", "rule": "number", "answers": ["4"], "blind": [3, 4], "votes": None}
    assert proof_words(proof) == "correct · number · states 4 · re-solved blind 3 of 4"
    assert proof_words({"method": "imported"}) == ""
