"""The mini-tasks of a problem: preference pairs between its responses, by the size of the gap."""

from collections.abc import Sequence

from cogpo_jax.records import Group, Pair, Response
from cogpo_jax.records.schema import UNSUITABLE
from crv.problems import Problem

# Which wrong text serves where a problem has several: a teacher's own mistake before a made one.
_NATURAL = {"teacher": 0, "solver": 1, "rewrite": 2, "rule": 3}


def make_group(problem: Problem, responses: Sequence[Response]) -> Group | None:
    """The problem's group: suitable > unsuitable (small), unsuitable > wrong (medium), suitable > wrong (large).

    One response of each sort is used, unknown ones never; responses without a pair are left out. None where there is
    no pair.
    """
    suitable = _first(responses, ("suitable",))
    unsuitable = _first(responses, UNSUITABLE)
    wrong = sorted((r for r in responses if r.kind == "incorrect"), key=lambda r: (_NATURAL.get(r.origin, 4), r.id))
    used = _distinct([r for r in (suitable, unsuitable, wrong[0] if wrong else None) if r is not None])
    place = {response.kind if response.kind not in UNSUITABLE else "unsuitable": i for i, response in enumerate(used)}
    wanted = (
        ("small", "suitable", "unsuitable"),
        ("medium", "unsuitable", "incorrect"),
        ("large", "suitable", "incorrect"),
    )
    pairs = tuple(Pair(place[w], place[x], gap) for gap, w, x in wanted if w in place and x in place)
    if not pairs:
        return None
    return Group(problem.problem_id, "", problem.problem, problem.answer, tuple(used), pairs, source=problem.source)


def _first(responses: Sequence[Response], kinds: tuple[str, ...]) -> Response | None:
    return next((response for response in responses if response.kind in kinds), None)


def _distinct(responses: list[Response]) -> list[Response]:
    """Without responses whose text is another's: equal texts cannot be preferred to each other."""
    seen: dict[tuple[str, str, str], Response] = {}
    for response in responses:
        seen.setdefault((response.thought, response.solution, response.text), response)
    return list(seen.values())
