"""Groups and SFT examples: exact round trips, and every rule of a group refused in one line."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogpo_jax.errors import UserError
from cogpo_jax.records import MINI_TASKS, Group, Pair, Response, SftExample, validate_group, validate_sft
from cogpo_jax.records.schema import decode_group, decode_sft, encode_group, encode_sft

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
spans = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3).map(tuple)
# Numbers that people write; other floats come back as the nearest float32.
betas = st.sampled_from([math.nan, 0.1, 0.2, 0.5, 1e-6, 0.123456, 3.0, 12.5])
responses = st.builds(Response, *[texts] * 9, loss_spans=spans)
pairs = st.builds(Pair, st.integers(0, 9), st.integers(0, 9), texts, betas, st.sampled_from([1.0, 0.25, 0.1]))
groups = st.builds(
    Group, *[texts] * 4, *(st.lists(x, max_size=4).map(tuple) for x in (responses, pairs)), messages=texts
)


@given(groups)
def test_group_survives_encoding(group):
    # Equality of pairs with NaN beta holds because decoding gives math.nan itself.
    assert decode_group(encode_group(group)) == group


@given(st.builds(SftExample, *[texts] * 9, loss_spans=spans))
def test_sft_example_survives_encoding(example):
    assert decode_sft(encode_sft(example)) == example


def test_lists_of_different_length_are_refused(group):
    from cogpo_jax.records import example, schema

    values = example.decode(encode_group(group()), schema.GROUP_FEATURES)
    values["weight"] = values["weight"][:-1]
    with pytest.raises(UserError, match=r"pair lists: .* must have one length"):
        decode_group(example.encode(values, schema.GROUP_FEATURES))


def test_a_good_group_and_example_pass(group, sft):
    validate_group(group())
    validate_sft(sft())


def _with_pair(group, **fields):
    return replace(group, pairs=(replace(group.pairs[0], **fields),))


def _with_response(group, i, **fields):
    responses = list(group.responses)
    responses[i] = replace(responses[i], **fields)
    return replace(group, responses=tuple(responses))


BAD_GROUPS = [
    (lambda g: _with_pair(g, chosen=3), r"pairs\[0\].chosen: 3: must be an index into the 3 responses"),
    (lambda g: _with_pair(g, rejected=-1), r"pairs\[0\].rejected: -1"),
    (lambda g: _with_pair(g, rejected=0), r"pairs\[0\]: 0: a response cannot be preferred to itself"),
    (lambda g: _with_pair(g, beta=0.0), r"pairs\[0\].beta: 0.0: must be above 0"),
    (lambda g: _with_pair(g, beta=-0.1), r"pairs\[0\].beta: -0.1"),
    (lambda g: _with_pair(g, beta=math.inf), r"pairs\[0\].beta: inf"),
    (lambda g: _with_pair(g, beta=1e-50), r"pairs\[0\].beta: 1e-50"),
    (lambda g: _with_pair(g, weight=0.0), r"pairs\[0\].weight: 0.0"),
    (lambda g: _with_pair(g, weight=math.nan), r"pairs\[0\].weight: nan"),
    (lambda g: _with_pair(g, gap="tiny"), r"pairs\[0\].gap: 'tiny': must be small or medium or large or none"),
    (lambda g: _with_pair(g, rejected=2), r"pairs\[0\].gap: small: its rejected response is incorrect, must be easy"),
    (lambda g: replace(g, pairs=()), "pairs: none"),
    (lambda g: replace(g, pairs=(*g.pairs, g.pairs[1])), r"pairs\[3\]: same chosen and rejected as pairs\[1\]"),
    (lambda g: replace(g, problem_id=""), "problem_id: empty"),
    (lambda g: replace(g, prompt=" \n"), "prompt: empty"),
    (lambda g: replace(g, schema_version=2), "schema_version: 2"),
    (lambda g: replace(g, messages="{not json"), "messages: .* must be empty or JSON"),
    (lambda g: replace(g, messages='[{"role": "user"}]'), "messages: .* must be a JSON list of"),
    (lambda g: replace(g, messages="[]"), r"messages: '\[\]': must be a JSON list of"),
    (lambda g: replace(g, verifier="{"), "verifier: .* must be empty or JSON"),
    (lambda g: _with_response(g, 0, text="  "), r"responses\[0\].text: empty"),
    (lambda g: _with_response(g, 1, solution=""), r"responses\[1\].solution: empty"),
    (lambda g: _with_response(g, 0, kind="medium"), r"responses\[0\].kind: 'medium': must be suitable or"),
    (lambda g: _with_response(g, 0, origin="web"), r"responses\[0\].origin: 'web'"),
    (lambda g: _with_response(g, 0, certificate="exact"), r"responses\[0\].certificate: 'exact'"),
    (lambda g: _with_response(g, 2, id="good"), r"responses\[2\].id: 'good': already the id of responses\[0\]"),
    (lambda g: _with_response(g, 2, text=g.responses[0].text), r"responses\[2\].text: equal to responses\[0\]"),
    (lambda g: _with_response(g, 0, loss_spans=((3, 3),)), r"responses\[0\].loss_spans: \(3, 3\)"),
    (lambda g: _with_response(g, 0, loss_spans=((0, 4), (3, 5))), r"responses\[0\].loss_spans: \(3, 5\)"),
    (lambda g: _with_response(g, 0, loss_spans=((0, 99),)), r"responses\[0\].loss_spans: 99: beyond"),
]


@pytest.mark.parametrize(("change", "message"), BAD_GROUPS)
def test_bad_group_is_refused(group, change, message):
    with pytest.raises(UserError, match=message):
        validate_group(change(group()))


@pytest.mark.parametrize("kind_of_chosen", ["suitable", "easy", "hard", "incorrect", "unknown"])
@pytest.mark.parametrize("kind_of_rejected", ["suitable", "easy", "hard", "incorrect", "unknown"])
@pytest.mark.parametrize("gap", ["small", "medium", "large", "none"])
def test_gap_must_be_the_mini_task_of_the_kinds(group, response, gap, kind_of_chosen, kind_of_rejected):
    chosen, rejected = response("a", kind_of_chosen, "x"), response("b", kind_of_rejected, "y")
    built = group(responses=(chosen, rejected), pairs=(Pair(0, 1, gap),))
    allowed = gap == "none" or (kind_of_chosen in MINI_TASKS[gap][0] and kind_of_rejected in MINI_TASKS[gap][1])
    if allowed:
        validate_group(built)
    else:
        with pytest.raises(UserError, match=f"gap: {gap}"):
            validate_group(built)


def test_imported_pairs_keep_their_authors_gap(group, response):
    imported = tuple(response(n, "unknown", n, origin="imported") for n in "ab")
    validate_group(group(responses=imported, pairs=(Pair(0, 1, "small"),)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thought": "", "text": ""}, "text: empty"),
        ({"solution": ""}, "solution: empty"),
        ({"problem_id": ""}, "problem_id: empty"),
        ({"prompt": ""}, "prompt: empty"),
        ({"origin": "web"}, "origin: 'web'"),
        ({"verifier": "]"}, "verifier"),
        ({"schema_version": 0}, "schema_version: 0"),
        ({"loss_spans": ((-1, 2),)}, "loss_spans"),
    ],
)
def test_bad_sft_example_is_refused(sft, fields, message):
    with pytest.raises(UserError, match=message):
        validate_sft(replace(sft(), **fields))
