"""Spelling and parsing never change a value: whatever is written, in whatever way, evaluates to what was meant."""

from fractions import Fraction
from math import factorial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crv.verify.arithmetic import exact
from crv.verify.latex import parse
from crv.verify.spelling import MAX_DEPTH, UnreadableError, join_thousands, spell

small = st.integers(1, 99)


@st.composite
def numbers(draw):
    """(text, value) of one number in one of its spellings."""
    a, b = draw(small), draw(small)
    return draw(
        st.sampled_from(
            [
                (str(a), Fraction(a)),
                (f"{a}.{b:02d}", Fraction(100 * a + b, 100)),
                (rf"\frac{{{a}}}{{{b}}}", Fraction(a, b)),
                (rf"\dfrac{a % 9 + 1}{b % 9 + 1}", Fraction(a % 9 + 1, b % 9 + 1)),
                (rf"{a}\tfrac{{{b}}}{{{b + 1}}}", a + Fraction(b, b + 1)),
                (f"{a} {b}/{b + 1}", a + Fraction(b, b + 1)),
                (f"{a}{{,}}{b:03d}", Fraction(1000 * a + b)),
                (rf"{a}\,{b:03d}", Fraction(1000 * a + b)),
                (f"{a}e-2", Fraction(a, 100)),
                (f"{a % 7}!", Fraction(factorial(a % 7))),
                (f"{a}²", Fraction(a * a)),
                (f"{a}^{{-1}}", Fraction(1, a)),
                (rf"{a}\%", Fraction(a, 100)),
                (rf"\sqrt{{{a * a}}}", Fraction(a)),
                (rf"\left|-{a}\right|", Fraction(a)),
            ]
        )
    )


def joined(pairs):
    (a, x), (b, y) = pairs
    forms = [
        (rf"\left({a}\right) + ({b})", x + y),
        (rf"({a}) - \bigl({b}\bigr)", x - y),
        (rf"({a})\cdot ({b})", x * y),
        (f"({a})({b})", x * y),
        (rf"({a})\;×\;({b})", x * y),
        (f"−({a})", -x),
        (rf"\displaystyle {{{a}}} \div ({b})", x / y if y else x),
    ]
    return st.sampled_from(forms if y else forms[:-1])


expressions = st.recursive(numbers(), lambda inner: st.tuples(inner, inner).flatmap(joined), max_leaves=5)


@settings(max_examples=300, deadline=None)
@given(expressions)
def test_what_is_written_evaluates_to_what_was_meant(expression):
    text, value = expression
    assert exact(parse(spell(text)).node) == value


@given(expressions)
@settings(max_examples=100, deadline=None)
def test_spelling_again_changes_nothing(expression):
    once = spell(expression[0])
    assert spell(once) == once


@pytest.mark.parametrize(
    ("text", "joined_text"),
    [
        ("1,234,567", "1234567"),
        ("-1,234.5", "-1234.5"),
        ("2, 500", "2, 500"),
        ("0,100", "0,100"),
        ("(5,120)", "(5,120)"),
    ],
)
def test_thousands_are_joined_only_where_the_whole_is_one_number(text, joined_text):
    assert join_thousands(text) == joined_text


@pytest.mark.parametrize(
    "text", ["2 3", "x.y", "n!!", r"\foo{2}", "the cat", "(1", r"2\frac{3}{2}", r"\sqrt 20", "1e9999"]
)
def test_what_is_not_read_whole_is_not_read(text):
    with pytest.raises(UnreadableError):
        parse(spell(text))


def test_deep_brackets_are_refused_before_they_cost_anything():
    parse("(" * (MAX_DEPTH - 1) + "1" + ")" * (MAX_DEPTH - 1))
    with pytest.raises(UnreadableError):
        parse("(" * 100_000 + "1" + ")" * 100_000)
