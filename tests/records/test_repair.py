r"""`\boxed` that an escape turned into a backspace comes back; honest whitespace stays."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogpo_jax.records.texts import repair_text

LATEX = (
    r"\boxed{\frac{1}{2}} \times \binom{4}{2} \triangle \text{cm} \vec{a} \alpha \theta \right) \rangle \tan(x) \rceil"
)


def test_latex_read_as_escapes_is_mended():
    damaged = json.loads(f'"{LATEX}"'.replace(r"\v", r"\u000b").replace(r"\a", r"\u0007"))
    assert "\\" not in damaged
    assert repair_text(damaged) == (LATEX, 13)


@pytest.mark.parametrize(
    ("damaged", "mended", "places"),
    [
        ("\x08oxed{3}", r"\boxed{3}", 1),
        ("page one\x0cpage two", "page one\npage two", 1),
        ("a line\x0bveers off", "a line\nveers off", 1),
        ("a\x00b\x1fc\x7f", "abc", 3),
        ("\x1b[31mred\x1b[0m", "red", 2),
        ("half \ud83d pair", "half \ufffd pair", 1),
        ("x \to 0 and n\to\\infty", r"x \to 0 and n\to\infty", 2),
        ("a\neq b, \nabla f, x \notin S", r"a\neq b, \nabla f, x \notin S", 3),
        ("\tan x, \tan(x), \tan\theta, \tanh 2", r"\tan x, \tan(x), \tan\theta, \tanh 2", 5),
    ],
)
def test_damage_and_its_mending(damaged, mended, places):
    assert repair_text(damaged) == (mended, places)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\timeout",
        "x\tan apple",
        "\texternal",
        "a\r\nnext",
        "a\tb\n\r\nc",
        "\t- If 2",
        "é 🙂",
        "\n\to item\nabout\neq. 3",
    ],
)
def test_honest_text_stays(text):
    assert repair_text(text) == (text, 0)


@given(st.text())
def test_mending_is_complete(text):
    once, places = repair_text(text)
    assert repair_text(once) == (once, 0)
    assert (once != text) == bool(places)
    once.encode("utf-8")
