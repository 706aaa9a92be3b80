"""The shipped problems keep the promises of their README."""

import sys
from pathlib import Path

import pytest

from cogpo_jax.records import read_groups
from crv.driver import run

sys.path.insert(0, str(Path(__file__).parent))
from slow_run import options

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    monkey = pytest.MonkeyPatch()
    monkey.chdir(ROOT)
    workdir = tmp_path_factory.mktemp("all")
    run(options(limit=0), workdir)
    monkey.undo()
    return [group for split in ("train", "validation") for group in read_groups(workdir, split)]


def length(response):
    return len((response.text or f"{response.thought}\n{response.solution}").split())


def test_there_are_enough_small_pairs_in_both_directions(groups):
    longer = [
        length(g.responses[p.chosen]) > length(g.responses[p.rejected])
        for g in groups
        for p in g.pairs
        if p.gap == "small"
    ]
    assert len(longer) >= 160
    assert 0.45 <= sum(longer) / len(longer) <= 0.55


def test_no_text_is_there_twice_and_a_triangle_has_one_teacher(groups):
    for group in groups:
        texts = {(r.thought, r.solution, r.text) for r in group.responses}
        assert len(texts) == len(group.responses)
        assert len({r.model for r in group.responses if not r.model.startswith("rule:")}) == 1


def test_style_does_not_give_the_wrong_text_away(groups):
    """By length, a wrong text is like the unsuitable one at least as often as like the suitable one."""
    nearer = []
    for by_kind in ({r.kind: length(r) for r in group.responses} for group in groups):
        unsuitable = by_kind.get("easy", by_kind.get("hard"))
        if unsuitable is not None and "incorrect" in by_kind:
            wrong = by_kind["incorrect"]
            nearer.append(abs(wrong - unsuitable) < abs(wrong - by_kind["suitable"]))
    assert sum(nearer) >= 0.5 * len(nearer)


def test_made_mistakes_have_their_models_length_and_natural_ones_are_there(groups):
    natural = 0
    for group in groups:
        by_kind = {response.kind: response for response in group.responses}
        wrong = by_kind.get("incorrect")
        if wrong and wrong.origin == "rule":
            models = [r for r in group.responses if r.kind in ("suitable", "easy", "hard")]
            assert min(abs(length(wrong) - length(r)) for r in models) <= 2
        else:
            natural += wrong is not None
    assert natural >= 35
