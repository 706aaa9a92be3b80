"""tf.train.Example without TensorFlow: TensorFlow's bytes, exact round trips, and refusal of anything else."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogpo_jax.errors import UserError
from cogpo_jax.records.example import Feature, decode, encode

TABLE = {
    "text": Feature("bytes"),
    "texts": Feature("bytes", 1),
    "number": Feature("int64"),
    "numbers": Feature("int64", 1),
    "reals": Feature("float", 1),
    "spans": Feature("int64", 1, width=2),
    "nested": Feature("int64", 2),
    "nested_spans": Feature("int64", 2, width=2),
}

texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63 - 1)
spans = st.tuples(numbers, numbers)


def tuples(values):
    return st.lists(values, max_size=4).map(tuple)


values = st.fixed_dictionaries(
    {
        "text": texts,
        "texts": tuples(texts),
        "number": numbers,
        "numbers": tuples(numbers),
        "reals": tuples(st.floats(width=32, allow_nan=False)),
        "spans": tuples(spans),
        "nested": tuples(tuples(numbers)),
        "nested_spans": tuples(tuples(spans)),
    }
)


@given(values)
def test_decode_inverts_encode(value):
    assert decode(encode(value, TABLE), TABLE) == value


@given(values, st.randoms())
def test_bytes_do_not_depend_on_the_order_of_fields(value, random):
    names = list(value)
    random.shuffle(names)
    shuffled = {name: value[name] for name in names}
    table = {name: TABLE[name] for name in reversed(names)}
    assert encode(shuffled, table) == encode(value, TABLE)


def test_bytes_are_those_of_tensorflow():
    # tf.train.Example(...).SerializeToString(deterministic=True), TensorFlow 2.21
    golden = "0a320a0b0a016112060a040a02c3a90a140a016e120f1a0d0a0b01feffffffffffffffff010a0d0a0178120812060a040000003f"
    table = {"n": Feature("int64", 1), "a": Feature("bytes", 1), "x": Feature("float", 1)}
    value = {"n": (1, -2), "a": ("é",), "x": (0.5,)}
    assert encode(value, table).hex() == golden
    assert decode(bytes.fromhex(golden), table) == value


def test_nested_lists_are_stored_as_tfds_stores_them():
    data = encode({"a": ((1, 2), (), (3,))}, {"a": Feature("int64", 2)})
    stored = {"a/ragged_flat_values": Feature("int64", 1), "a/ragged_row_lengths_0": Feature("int64", 1)}
    assert decode(data, stored) == {"a/ragged_flat_values": (1, 2, 3), "a/ragged_row_lengths_0": (2, 0, 1)}


def test_empty_list_keeps_its_type():
    data = encode({"a": ()}, {"a": Feature("int64", 1)})
    assert decode(data, {"a": Feature("int64", 1)}) == {"a": ()}
    with pytest.raises(UserError, match="a: stored as int64_list: must be bytes_list"):
        decode(data, {"a": Feature("bytes", 1)})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": "half \ud83d"}, "text: .* must be bytes"),
        ({"text": 3}, "text: .* must be bytes"),
        ({"number": 2**63}, "number: .* must be int64"),
        ({"number": "3"}, "number: .* must be int64"),
        ({"spans": ((1, 2, 3),)}, "every item must have 2 numbers"),
    ],
)
def test_value_that_its_kind_cannot_hold_is_refused(value, message):
    with pytest.raises(UserError, match=message):
        encode(value, {name: TABLE[name] for name in value})


def test_missing_and_unknown_fields_are_refused():
    with pytest.raises(UserError, match="number"):
        encode({"text": ""}, {"text": TABLE["text"], "number": TABLE["number"]})
    with pytest.raises(UserError, match="extra"):
        encode({"text": "", "extra": 1}, {"text": TABLE["text"]})
    data = encode({"text": "", "extra": 1}, {"text": TABLE["text"], "extra": TABLE["number"]})
    with pytest.raises(UserError, match=r"\['extra'\]: not in the record's schema"):
        decode(data, {"text": TABLE["text"]})
    with pytest.raises(UserError, match="number: missing"):
        decode(data, {"text": TABLE["text"], "extra": TABLE["number"], "number": TABLE["number"]})


def test_lists_of_another_shape_are_refused():
    two = encode({"a": ("x", "y")}, {"a": Feature("bytes", 1)})
    with pytest.raises(UserError, match="a: 2 values: exactly one"):
        decode(two, {"a": Feature("bytes")})
    three = encode({"a": (1, 2, 3)}, {"a": Feature("int64", 1)})
    with pytest.raises(UserError, match="a: 3 values: must be a multiple of 2"):
        decode(three, {"a": Feature("int64", 1, width=2)})
    stored = {"a/ragged_flat_values": Feature("int64", 1), "a/ragged_row_lengths_0": Feature("int64", 1)}
    for lengths in ((1,), (3, -1), (1, 2)):
        data = encode({"a/ragged_flat_values": (7, 8), "a/ragged_row_lengths_0": lengths}, stored)
        with pytest.raises(UserError, match="a: row lengths"):
            decode(data, {"a": Feature("int64", 2)})


def test_bytes_that_are_no_example_are_refused():
    for data in (b"\xff", b"hello", b"\x0a\x05abc"):
        with pytest.raises(UserError):
            decode(data, {"text": TABLE["text"]})


def test_feature_that_occurs_twice_is_refused():
    one = encode({"text": "a"}, {"text": TABLE["text"]})
    entry = one[2:]  # past the tag and length of `features`
    twice = bytes([0x0A, 2 * len(entry)]) + entry * 2
    with pytest.raises(UserError, match="occurs twice"):
        decode(twice, {"text": TABLE["text"]})


def test_text_that_is_not_utf8_is_refused():
    data = encode({"text": "abcd"}, {"text": TABLE["text"]}).replace(b"abcd", b"ab\xff\xfe")
    with pytest.raises(UserError, match="text: not UTF-8"):
        decode(data, {"text": TABLE["text"]})


def test_every_table_row_is_written_even_if_empty():
    for rank, width in itertools.product((1, 2), (None, 2)):
        table = {"a": Feature("int64", rank, width)}
        assert decode(encode({"a": ()}, table), table) == {"a": ()}
