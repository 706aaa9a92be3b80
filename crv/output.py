"""Outcomes -> records: groups of preference pairs and sft examples, in an order that no run can change.

And the same records in other people's formats, read back from the TFRecords.
"""

import hashlib
import heapq
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cogpo_jax.atomic import atomic_file
from cogpo_jax.errors import UserError
from cogpo_jax.records import Group, Pair, Response, SftExample, read_groups, read_sft, splits, write_data
from cogpo_jax.records.schema import UNSUITABLE
from cogpo_jax.records.shards import write_array_record
from crv.ledger import Ledger
from crv.loop import Outcome
from crv.options import Options
from crv.problems import Problem

_PROBLEM_FIELDS = tuple(field.name for field in fields(Problem))  # asdict copies deeply: 20 times as slow


def outcome_row(problem: Problem, outcome: Outcome) -> dict[str, Any]:
    """What the ledger keeps of a finished problem, as JSON."""
    return {
        "problem": {name: getattr(problem, name) for name in _PROBLEM_FIELDS},
        "responses": [dict(vars(response)) for response in outcome.responses],
        "story": list(outcome.story),
    }


def gaps_of(problem: Problem, outcome: Outcome) -> str:
    """The gaps of the pairs that a finished problem gives ("small medium large"), empty where there are none."""
    group = make_group(problem, outcome.responses) if outcome.state != "dropped" else None
    return " ".join(pair.gap for pair in group.pairs) if group else ""


def export(ledger: Ledger, options: Options, folder: str | os.PathLike[str], info: dict[str, Any]) -> dict[str, Any]:
    """Writes all finished problems as records and returns the manifest; equal ledgers give equal bytes.

    A problem is held out by a hash of its id: the `heldout` (count, or share below 1) smallest ones of those that give
    records.
    """
    cut = _heldout_cut(ledger, options)
    splits = {"train": False, "validation": True}
    return write_data(
        folder,
        sft={name: _sft(ledger, options, cut, heldout) for name, heldout in splits.items()},
        groups={
            "train": _balanced(ledger, options, cut),
            "validation": _groups(ledger, options, cut, True),
        },
        shards=options.shards,
        info=info,
    )


def _heldout_cut(ledger: Ledger, options: Options) -> int:
    """The split hash up to which a problem is held out; -1 where none is."""
    if options.heldout < 1:
        return int(options.heldout * 2**64) - 1
    ids = ledger.db.execute("SELECT problem_id FROM outcomes WHERE pairs != ''")
    smallest = heapq.nsmallest(int(options.heldout), (_split_hash(problem_id, options.seed) for (problem_id,) in ids))
    return smallest[-1] if smallest else -1


def _split_hash(problem_id: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"split\0{seed}\0{problem_id}".encode()).digest()[:8], "big")


def _sft(ledger: Ledger, options: Options, cut: int, heldout: bool) -> Iterator[SftExample]:
    for problem, responses in _finished(ledger, options, cut, heldout):
        for r in responses:
            if r.kind == "suitable":
                about = (problem.answer, problem.difficulty, problem.source)
                own: dict[str, Any] = {"id": r.id, "parent": r.parent, "origin": r.origin, "model": r.model}
                texts = (problem.problem, r.thought, r.solution, r.text)
                yield SftExample(problem.problem_id, "", *texts, *about, **own)


def _balanced(ledger: Ledger, options: Options, cut: int) -> Iterator[Group]:
    """The training groups; held-out pairs stay as they are, since they are counted by direction."""
    if options.balance == "none":
        return _groups(ledger, options, cut, False)
    directions = count_directions(_groups(ledger, options, cut, False))
    groups = _groups(ledger, options, cut, False)
    return balanced(groups, directions, options.balance, lambda name: _split_hash(name, options.seed) / 2**64)


def _groups(ledger: Ledger, options: Options, cut: int, heldout: bool) -> Iterator[Group]:
    for problem, responses in _finished(ledger, options, cut, heldout):
        if group := make_group(problem, responses):
            yield group


def _finished(
    ledger: Ledger, options: Options, cut: int, heldout: bool
) -> Iterator[tuple[Problem, tuple[Response, ...]]]:
    def wanted(problem_id: str) -> bool:
        return (_split_hash(problem_id, options.seed) <= cut) == heldout

    for _, row in ledger.outcomes("state != 'dropped'", wanted=wanted):
        responses = ({**r, "loss_spans": tuple(map(tuple, r["loss_spans"]))} for r in row["responses"])
        yield Problem(**row["problem"]), tuple(Response(**r) for r in responses)


# Which wrong text serves where a problem has several: the student's own mistake, then a
# teacher's, before a made one.
_NATURAL = {"student": 0, "teacher": 1, "solver": 2, "rewrite": 3, "rule": 4}


def make_group(problem: Problem, responses: Sequence[Response]) -> Group | None:
    """The problem's group: suitable > unsuitable (small), unsuitable > wrong (medium), suitable > wrong (large).

    One response of each sort is used, unknown ones never; responses without a pair are left out. None where there is
    no pair.
    """
    suitable = _first(responses, ("suitable",))
    unsuitable = _first(responses, UNSUITABLE)
    wrong = sorted((r for r in responses if r.kind == "incorrect"), key=lambda r: (_NATURAL.get(r.origin, 5), r.id))
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


def write_also(workdir: str | Path, formats: tuple[str, ...], beta: Mapping[str, float]) -> list[str]:
    """Writes each of `formats` beside the records of `workdir` and returns the paths.

    authors: `authors/{split}.json`, a list of {prompt, chosen, rejected, beta, gap}: as the authors released theirs,
    with `beta` by gap. datasets: `datasets/{groups,sft}`, for `datasets.load_from_disk`. array_record:
    `array_record/{groups,sft}`, which tfds and grain read by index.
    """
    folder = Path(workdir)
    written = []
    for name in formats:
        if name == "authors":
            for split in splits(folder).get("groups", {}):
                written.append(str(_write_authors(folder, split, beta)))
        elif name == "array_record":
            written.append(str(write_array_record(folder, folder / "array_record")))
        else:
            written += [str(path) for path in _write_datasets(folder)]
    return written


def response_text(response: Response) -> str:
    """A response as one plain text: thought and solution on lines of their own, or the text as it is."""
    return response.text if not response.thought else f"{response.thought}\n{response.solution}"


def _write_authors(folder: Path, split: str, beta: Mapping[str, float]) -> Path:
    path = folder / "authors" / f"{split}.json"
    with atomic_file(path) as f:
        f.write(b"[")
        for number, row in enumerate(_pairs(read_groups(folder, split), beta)):
            f.write((",\n" if number else "\n").encode() + json.dumps(row, ensure_ascii=False).encode())
        f.write(b"\n]\n")
    return path


def _pairs(groups: Iterator[Group], beta: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for group in groups:
        for pair in group.pairs:
            chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
            yield {
                "prompt": group.prompt,
                "chosen": response_text(chosen),
                "rejected": response_text(rejected),
                "beta": beta[pair.gap] if math.isnan(pair.beta) else pair.beta,
                "gap": pair.gap,
            }


def _write_datasets(folder: Path) -> Iterator[Path]:
    try:
        import datasets
    except ImportError as error:
        raise UserError("also: datasets: needs the package datasets (pip install cogpo-jax[crv])") from error
    kinds = {
        "groups": lambda split: map(_nested, read_groups(folder, split)),
        "sft": lambda split: map(vars, read_sft(folder, split)),
    }
    for name, rows in kinds.items():
        path, staging = folder / "datasets" / name, folder / "datasets" / f".{name}"
        shutil.rmtree(staging, ignore_errors=True)
        made = {
            split: datasets.Dataset.from_generator(lambda s=split, r=rows: r(s), cache_dir=str(staging / "cache"))
            for split, count in splits(folder).get(name, {}).items()
            if count
        }
        datasets.DatasetDict(made).save_to_disk(str(staging / "out"))
        shutil.rmtree(path, ignore_errors=True)
        (staging / "out").rename(path)
        shutil.rmtree(staging)
        yield path


def _nested(group: Group) -> dict[str, Any]:
    row = dict(vars(group))
    row["responses"] = [{**vars(response), "loss_spans": list(response.loss_spans)} for response in group.responses]
    row["pairs"] = [dict(vars(pair)) for pair in group.pairs]
    return row
