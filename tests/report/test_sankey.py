"""The flow picture: every band as wide as its count, nothing lost between two columns."""

import re
from collections import Counter
from itertools import pairwise

from cogpo_jax.report.svg import BODY, flows

COLUMNS = {"in": ("a", "b"), "word": ("x", "y", ""), "out": ("kept", "<lost>")}
PATHS = {("a", "x", "kept"): 60, ("a", "y", "kept"): 20, ("a", "y", "<lost>"): 10, ("b", "", "<lost>"): 10}
BAND = re.compile(r'<path class="flow (\S+)" d="M[\d.]+,([\d.]+)C[^v]*v([\d.]+)C[^>]*><title>([^<]*): ([\d,]+)</title>')


def bands(picture):
    return [(kind, float(y), float(width), name, int(count)) for kind, y, width, name, count in BAND.findall(picture)]


def test_bands_are_as_wide_as_their_counts():
    found = bands(flows(COLUMNS, PATHS, 1))
    assert all(abs(width - BODY * count / 100) < 0.1 for _, _, width, _, count in found)
    assert sum(count for *_, count in found) == 2 * 100


def test_bands_have_the_colour_of_the_named_column_all_the_way():
    colours = Counter()
    for kind, _, _, _, count in bands(flows(COLUMNS, PATHS, 1)):
        colours[kind] += count
    assert colours == {"c0": 120, "c1": 60, "rest": 20}


def test_bands_that_leave_one_place_do_not_overlap():
    leaving = sorted((y, width) for _, y, width, name, _ in bands(flows(COLUMNS, PATHS, 1)) if name.startswith("a →"))
    assert all(y + width <= after + 0.11 for (y, width), (after, _) in pairwise(leaving))


def test_a_place_passed_through_has_no_bar_and_names_are_escaped():
    picture = flows(COLUMNS, PATHS, 1)
    assert picture.count('<rect class="place"') == 6
    assert "<lost>" not in picture
    assert "&lt;lost&gt;" in picture


def test_no_paths_no_picture():
    assert flows(COLUMNS, {("a", "x", "kept"): 0}, 1) == ""
