"""What the page shows of a CRV run; `crv.overview` reads it from a ledger."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The columns of the flow picture, each with its places in drawing order; "" is passed through without a stop.
ORIGINAL = ("right", "undecided", "wrong", "none given", "gold unreadable", "not looked at")
CRITIC = ("medium", "easy", "hard", "no label", "")
REWRITES = ("kept as it was", "1 round", "2 rounds", "3 rounds", "more rounds", "")
END = (
    "suitable as it was",
    "suitable rewrite",
    "no rewrite passed",
    "critic unusable",
    "no right original",
    "dropped before any call",
)
FLOW_COLUMNS = {"original": ORIGINAL, "critic": CRITIC, "rewrites": REWRITES, "verified": END}

FlowPath = tuple[str, ...]  # one place of each column


@dataclass(frozen=True)
class AgentCost:
    """Finished calls of one agent and model; `seconds`: summed over calls, as the server told them (0 = not told)."""

    agent: str
    model: str
    calls: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    seconds: float
    ends: Mapping[str, int]  # finish reasons but "stop"


@dataclass(frozen=True)
class Text:
    """One response of a shown problem; `parent`: id of the response that it was made from."""

    id: str
    parent: str
    kind: str
    origin: str
    model: str
    text: str
    proof: Mapping[str, Any]


@dataclass(frozen=True)
class ShownProblem:
    """A problem of the browser; `story`: one dict a step, as in the ledger."""

    problem_id: str
    problem: str
    answer: str
    state: str
    reason: str
    label: str
    rounds: int
    pairs: str
    texts: tuple[Text, ...]
    story: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class CrvRun:
    """A run's counts, and some of its problems.

    `problems`: taken in; `walked`: those that have come to their end with calls; `states` counts these, and as dropped
    those that hygiene left out. `words`: by label
    and series, how many texts have how many words. `rounds`: (rounds, state) -> problems.
    """

    problems: int
    walked: int
    states: Mapping[str, int]
    drops: Mapping[str, int]
    pairs: Mapping[str, int]
    flows: Mapping[FlowPath, int]
    words: Mapping[tuple[str, str], Counter[int]]
    rounds: Mapping[tuple[int, str], int]
    unusable: Mapping[str, int]
    cost: tuple[AgentCost, ...]
    shown: tuple[ShownProblem, ...]
