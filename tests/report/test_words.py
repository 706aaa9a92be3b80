"""What changed between two texts: words, not spaces; safe HTML; nothing lost."""

import random
import re

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from cogpo_jax.report.crv_section import difference

TEXT = st.text(alphabet="ab<>&\"' \n\t", max_size=60)


def test_words_that_left_and_came_are_marked_and_escaped():
    found = difference("so 2 + 2 = 4 & done", "so 2 + 2 = <5> & done")
    assert found.before == "so 2 + 2 = <del>4</del> &amp; done"
    assert found.after == "so 2 + 2 = <ins>&lt;5&gt;</ins> &amp; done"
    assert found.shared == 7 / 8


def test_line_breaks_are_no_difference():
    found = difference("one two\nthree", "one  two three")
    assert found.before == "one two\nthree"
    assert found.after == "one  two three"
    assert found.shared == 1


def test_texts_with_little_in_common_are_not_marked():
    found = difference("alpha beta gamma delta epsilon <b>", "alpha 1 2 3 4 5 6 7 8 9 <b> 10")
    assert "<" not in found.before + found.after
    assert found.shared < 0.4


@given(TEXT, TEXT)
def test_without_its_marks_each_text_is_as_it_was(before, after):
    found = difference(before, after)
    for marked, text in ((found.before, before), (found.after, after)):
        assert Markup(re.sub(r"</?(?:ins|del)>", "", marked)).unescape() == text


def test_a_long_text_takes_no_minutes():
    words = random.Random(0).choices(["the", "of", *(f"w{i}" for i in range(900))], k=8000)
    found = difference(" ".join(words), " ".join(words[:4000] + ["new"] * 50 + words[4000:]))
    assert found.shared > 0.9
