"""Pairs balanced by length: the first cure for a student that learns "longer" or "shorter" instead of "better"."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from cogpo_jax.records import Group, Pair, Response

_ALIKE = 0.05
Directions = Counter[tuple[str, bool]]  # (gap, chosen is longer) -> pairs


def length(response: Response) -> int:
    """The length by which pairs are balanced, in characters."""
    return len(response.thought) + len(response.solution) + len(response.text)


def chosen_is_longer(group: Group, pair: Pair) -> bool | None:
    """Whether the chosen is longer than the rejected; None where they are alike to a twentieth."""
    chosen, rejected = (length(group.responses[i]) for i in (pair.chosen, pair.rejected))
    return None if abs(chosen - rejected) <= _ALIKE * max(chosen, rejected) else chosen > rejected


def count_directions(groups: Iterable[Group]) -> Directions:
    """How many pairs of each gap have a longer, and how many a shorter chosen."""
    return Counter(
        (pair.gap, longer)
        for group in groups
        for pair in group.pairs
        if (longer := chosen_is_longer(group, pair)) is not None
    )


def balanced(
    groups: Iterable[Group], directions: Directions, how: str, dice: Callable[[str], float]
) -> Iterator[Group]:
    """Groups whose pairs of one gap weigh as much with a longer as with a shorter chosen.

    `weight`: every pair stays, and one of a direction with n of N pairs weighs N / 2n. `drop`: pairs of the commoner
    direction are left out at random (`dice`: a number in [0, 1) from a problem's id), groups without a pair with them.
    """
    for group in groups:
        pairs = []
        for pair in group.pairs:
            share = _share(group, pair, directions)
            if how == "weight" and share:
                pairs.append(replace(pair, weight=pair.weight / (2 * share)))
            elif how != "drop" or share <= 0.5 or dice(f"{group.problem_id}/{pair.gap}") < (1 - share) / share:
                pairs.append(pair)
        if pairs:
            yield _without_unused(replace(group, pairs=tuple(pairs)))


def _share(group: Group, pair: Pair, directions: Directions) -> float:
    """The share of the pair's direction among the pairs of its gap; 0 where it has none, or is the only one."""
    longer = chosen_is_longer(group, pair)
    if longer is None:
        return 0.0
    mine, other = directions[pair.gap, longer], directions[pair.gap, not longer]
    return mine / (mine + other) if other else 0.0


def _without_unused(group: Group) -> Group:
    used = sorted({i for pair in group.pairs for i in (pair.chosen, pair.rejected)})
    if len(used) == len(group.responses):
        return group
    place = {old: new for new, old in enumerate(used)}
    pairs = tuple(replace(pair, chosen=place[pair.chosen], rejected=place[pair.rejected]) for pair in group.pairs)
    return replace(group, responses=tuple(group.responses[i] for i in used), pairs=pairs)
