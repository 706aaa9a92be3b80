"""The flow picture: every band as wide as its count, nothing lost between two columns."""

from collections import Counter
from itertools import pairwise

from cogpo_jax.report.charts import BODY, flows
from cogpo_jax.report.page import render

COLUMNS = {"in": ("a", "b"), "word": ("x", "y", ""), "out": ("kept", "<lost>")}
PATHS = {("a", "x", "kept"): 60, ("a", "y", "kept"): 20, ("a", "y", "<lost>"): 10, ("b", "", "<lost>"): 10}
BANDS = flows(COLUMNS, PATHS, 1).bands


def test_bands_are_as_wide_as_their_counts():
    assert all(abs(band.width - BODY * band.count / 100) < 1e-9 for band in BANDS)
    assert sum(band.count for band in BANDS) == 2 * 100


def test_bands_have_the_colour_of_the_named_column_all_the_way():
    colours = Counter()
    for band in BANDS:
        colours[band.colour] += band.count
    assert colours == {0: 120, 1: 60, None: 20}


def test_bands_that_leave_one_place_do_not_overlap():
    leaving = sorted((band.start, band.width) for band in BANDS if band.names[0] == "a")
    assert all(y + width <= after + 1e-9 for (y, width), (after, _) in pairwise(leaving))


def test_a_place_passed_through_has_no_bar_and_names_are_escaped():
    source = '{% import "charts.html" as charts %}{{ charts.flow_picture(flows) }}'
    picture = render(source, flows=flows(COLUMNS, PATHS, 1))
    assert picture.count('class="place"') == 6
    assert picture.count("<path") == len(BANDS)
    assert "<lost>" not in picture
    assert "&lt;lost&gt;" in picture


def test_no_paths_no_picture():
    assert flows(COLUMNS, {("a", "x", "kept"): 0}, 1) is None
