"""Small records with every awkward thing in them: unicode, empty fields, several spans, NaN betas."""

import pytest

from cogpo_jax.records import Group, Pair, Response, SftExample


def make_response(name="r", kind="suitable", text="a text", **fields):
    values = {
        "parent": "",
        "origin": "teacher",
        "model": "m",
        "thought": "",
        "solution": "",
        "certificate": "",
    } | fields
    return Response(id=name, text=text, kind=kind, **values)


def make_group(i=0, **fields):
    responses = (
        make_response("good", text=f"the sum ∑ is {i} 🙂", loss_spans=((0, 3), (4, 7))),
        make_response("long", "hard", "", thought="well\nlet me see", solution="42", certificate='{"method": "exact"}'),
        make_response("wrong", "incorrect", "\\boxed{43}", origin="rule", parent="good", loss_spans=((0, 1),)),
    )
    pairs = (Pair(0, 1, "small", 0.1), Pair(1, 2, "medium"), Pair(0, 2, "large", 0.5, 2.0))
    values = {"system": "", "prompt": "How many?", "answer": "42", "responses": responses, "pairs": pairs} | fields
    return Group(problem_id=f"p{i}", **values)


def make_sft(i=0, **fields):
    values = {"thought": "think", "solution": "answer", "text": "", "answer": "42", "difficulty": "3", "source": "s"}
    values |= {"system": "", "prompt": "How many é?", "loss_spans": ((0, 3), (5, 6)) if i % 2 else ()} | fields
    return SftExample(problem_id=f"p{i}", **values)


@pytest.fixture(scope="session")
def group():
    return make_group


@pytest.fixture(scope="session")
def response():
    return make_response


@pytest.fixture(scope="session")
def sft():
    return make_sft
