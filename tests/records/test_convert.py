"""Flat rows to groups: joining, sharing, mending, dropping, holding out; and bad rows named with file and line."""

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogpo_jax.errors import UserError
from cogpo_jax.records import Pair, read_groups, splits
from cogpo_jax.records.convert import ConvertOptions, convert_pairs


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def convert(tmp_path):
    def call(rows, **options):
        source = write_rows(tmp_path / "pairs.jsonl", rows)
        summary = convert_pairs(source, tmp_path / "out", ConvertOptions(**options))
        return summary, [
            g for split in splits(tmp_path / "out")["groups"] for g in read_groups(tmp_path / "out", split)
        ]

    return call


def row(prompt="q", chosen="a", rejected="b", **fields):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | fields


def say(role, text):
    return {"role": role, "content": text}


def test_equal_prompts_join_and_equal_responses_are_shared(convert):
    rows = [row("q1", "a", "b"), row("q2", "a", "b"), row("q1", "a", "c"), row("q1", "b", "c")]
    summary, groups = convert(rows)
    assert [g.prompt for g in groups] == ["q1", "q2"]
    assert [r.text for r in groups[0].responses] == ["a", "b", "c"]
    assert groups[0].pairs == (Pair(0, 1, "none"), Pair(0, 2, "none"), Pair(1, 2, "none"))
    assert summary["groups"]["train"]["counts"]["responses"] == 5
    assert summary["rows"] == {"read": 4, "kept": 4}


def test_a_released_row_of_the_cogpo_authors(convert):
    thought = "<|begin_of_thought|>\n\nwell\n\n<|end_of_thought|>\n\n<|begin_of_solution|>4<|end_of_solution|>"
    _, (group,) = convert([row("What is 2+2?", thought, "5", beta=0.5)])
    assert group.pairs == (Pair(0, 1, "none", 0.5),)
    good, bad = group.responses
    assert (good.thought, good.solution, good.text) == ("well", "4", "")
    assert (bad.thought, bad.solution, bad.text) == ("", "", "5")
    assert {(r.kind, r.origin, r.certificate) for r in (good, bad)} == {
        ("unknown", "imported", '{"method": "imported"}')
    }


def test_gap_weight_and_system_are_kept(convert):
    _, (group,) = convert([row(gap="small", weight=0.25, system="Be brief.")])
    assert group.system == "Be brief."
    (pair,) = group.pairs
    assert (pair.gap, pair.weight) == ("small", 0.25)
    assert math.isnan(pair.beta)


def test_other_system_is_another_prompt(convert):
    _, groups = convert([row(system="S"), row(), row(system="")])
    assert [(g.system, len(g.pairs)) for g in groups] == [("S", 1), ("", 1)]
    assert len({g.problem_id for g in groups}) == 2


def test_duplicate_and_contradictory_pairs_are_counted(convert):
    rows = [row(beta=0.1), row(beta=0.1), row(beta=0.5), row(chosen="b", rejected="a")]
    summary, (group,) = convert(rows)
    assert group.pairs == (Pair(0, 1, "none", 0.1), Pair(1, 0, "none"))
    assert summary["joined"] == {
        "contradictory_pairs": 1,
        "duplicate_pairs": 2,
        "duplicate_pairs_labelled_otherwise": 1,
    }


def test_control_characters_are_mended_and_counted(convert):
    rows = [row(chosen="\x08oxed{\x0crac12}"), row(chosen=r"\boxed{\frac12}", rejected="c"), row("\x00q", "d")]
    summary, (group,) = convert(rows)
    assert [r.text for r in group.responses] == [r"\boxed{\frac12}", "b", "c", "d"]
    assert summary["repaired"] == {"rows": 2, "control_characters": 3}


def test_unusable_rows_are_dropped_and_counted(convert):
    two = [say("assistant", "x"), say("user", "y"), say("assistant", "z")]
    rows = [
        row(),
        row(rejected="a"),
        row(rejected="\x08oxed", chosen="\\boxed"),  # equal once mended
        row(prompt=" \n"),
        row(chosen=""),
        row(rejected="\x00"),
        row(chosen=two),
        row(prompt=[say("user", "q"), say("assistant", "prefilled")]),
    ]
    summary, groups = convert(rows)
    assert len(groups) == 1
    assert summary["rows"] == {"read": 8, "kept": 1}
    assert summary["dropped"] == {
        "chosen_equals_rejected": 2,
        "empty_prompt": 1,
        "empty_chosen": 1,
        "empty_rejected": 1,
        "response_is_not_one_assistant_message": 1,
        "prompt_does_not_end_with_user_message": 1,
    }


def test_what_is_ignored_is_counted(convert):
    rows = [row(score=1), row(score=None, source="x"), row(chosen=[say("assistant", "a") | {"name": "n"}])]
    summary, _ = convert(rows)
    assert summary["ignored_columns"] == {"chosen.name": 1, "score": 1, "source": 1}


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "hi"} | {k: [say("assistant", v)] for k, v in (("chosen", "x"), ("rejected", "y"))},
        {"prompt": [say("user", "hi")]} | {k: [say("assistant", v)] for k, v in (("chosen", "x"), ("rejected", "y"))},
        {"prompt": [say("user", "hi")], "chosen": "x", "rejected": "y"},
        {k: [say("user", "hi"), say("assistant", v)] for k, v in (("chosen", "x"), ("rejected", "y"))},
        {"prompt": "hi"}
        | {k: [say("user", "hi"), say("assistant", v)] for k, v in (("chosen", "x"), ("rejected", "y"))},
    ],
)
def test_every_way_to_write_one_turn_is_the_same_group(convert, columns):
    _, groups = convert([row("hi", "x", "y"), columns])
    (group,) = groups
    assert (group.prompt, group.messages, len(group.pairs)) == ("hi", "", 1)


def test_conversation_keeps_its_turns(convert):
    start = [say("system", "S"), say("user", "hi"), say("assistant", "hello"), say("user", "more?")]
    replies = {k: [*start, say("assistant", k)] for k in ("chosen", "rejected")}
    explicit = {"prompt": start} | {k: [say("assistant", k)] for k in ("chosen", "rejected")}
    _, (group,) = convert([replies, explicit])
    assert (group.system, group.prompt) == ("S", "more?")
    assert json.loads(group.messages) == start[1:]
    assert [r.text for r in group.responses] == ["chosen", "rejected"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "list: each row must be one JSON object"),
        ('{"prompt": "q", "chosen": "a"}', "rejected: missing"),
        ('{"chosen": "a", "rejected": "b"}', "prompt: missing"),
        ('{"prompt": null, "chosen": "a", "rejected": "b"}', "prompt: missing"),
        ('{"prompt": "q", "chosen": 3, "rejected": "b"}', "chosen: int: must be a text or a list of chat messages"),
        ('{"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": "b"}', "chosen: .*text role and content"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "beta": 0}', "beta: 0: must be a number above 0"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "beta": -0.1}', "beta: -0.1"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "beta": "x"}', "beta: 'x'"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "beta": true}', "beta: 'True'"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "weight": Infinity}', "weight: inf"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "beta": 1' + "0" * 400 + "}", "beta: '100"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "gap": "tiny"}', "gap: 'tiny': must be small, medium"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "system": 1}', "system: int: must be a text"),
        (
            '{"prompt": [{"role": "system", "content": "A"}, {"role": "user", "content": "q"}], "chosen": "a", '
            '"rejected": "b", "system": "B"}',
            "system: differs",
        ),
        (
            '{"prompt": [{"role": "user", "content": "q"}, {"role": "system", "content": "A"}], "chosen": "a", '
            '"rejected": "b"}',
            "prompt: a system message may only stand first",
        ),
    ],
)
def test_bad_row_is_named_with_file_and_line_and_nothing_is_written(tmp_path, line, message):
    source = tmp_path / "pairs.jsonl"
    source.write_text(json.dumps(row()) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=re.escape(f"{source}:3: ") + message):
        convert_pairs(str(source), tmp_path / "out", ConvertOptions(strict=True))
    assert list((tmp_path / "out").iterdir()) == []
    summary = convert_pairs(str(source), tmp_path / "out")
    assert summary["rows"]["kept"] == 1
    assert [reason for reason in summary["dropped"] if reason.startswith("bad_row: ")], "dropped and counted"


def test_unusable_input_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        convert_pairs(str(tmp_path / "nowhere.jsonl"), tmp_path / "out")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="empty"):
        convert_pairs(str(tmp_path / "empty.jsonl"), tmp_path / "out")
    source = write_rows(tmp_path / "equal.jsonl", [row(rejected="a")])
    with pytest.raises(UserError, match=r"no usable row \(1 read, dropped: {'chosen_equals_rejected': 1}\)"):
        convert_pairs(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"--validation_fraction: 1\.0"):
        ConvertOptions(validation_fraction=1.0)
    with pytest.raises(UserError, match="--shards: 0"):
        ConvertOptions(shards=0)


def test_prompts_are_held_out_by_their_hash(convert, tmp_path):
    rows = [row(f"q{i}") for i in range(200)]
    convert(rows, validation_fraction=0.25)
    held_out = {g.prompt for g in read_groups(tmp_path / "out", "validation")}
    assert 25 <= len(held_out) <= 75
    assert held_out.isdisjoint(g.prompt for g in read_groups(tmp_path / "out", "train"))
    convert(rows[::-1][:150], validation_fraction=0.25)  # other rows around it do not move a prompt
    assert {g.prompt for g in read_groups(tmp_path / "out", "validation")} == held_out & {
        f"q{i}" for i in range(50, 200)
    }


def test_same_rows_same_bytes(tmp_path):
    source = write_rows(tmp_path / "pairs.jsonl", [row(f"q{i % 7}", f"a{i}", f"b{i % 3}") for i in range(30)])
    files = []
    for name in ("one", "two"):
        convert_pairs(source, tmp_path / name, ConvertOptions(shards=3, validation_fraction=0.3))
        files.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*.*")})
    assert files[0] == files[1]
    assert len(files[0]) >= 5


letters = st.sampled_from("abcd")
flat = st.lists(st.tuples(st.sampled_from("pq"), letters, letters), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(flat)
def test_groups_say_exactly_what_the_rows_say(tmp_path_factory, triples):
    folder = tmp_path_factory.mktemp("convert")
    wanted = {t for t in triples if t[1] != t[2]}
    source = write_rows(folder / "pairs.jsonl", [row(*t) for t in triples])
    if not wanted:
        with pytest.raises(UserError, match="no usable row"):
            convert_pairs(source, folder / "out")
        return
    convert_pairs(source, folder / "out")
    groups = list(read_groups(folder / "out"))
    found = [(g.prompt, g.responses[p.chosen].text, g.responses[p.rejected].text) for g in groups for p in g.pairs]
    assert sorted(found) == sorted(wanted)
    assert sum(len(g.responses) for g in groups) == len({(p, r) for p, *both in wanted for r in both})


def test_datasets_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [row("q1", "a", "b", beta=0.5), row("q1", "a", "c", beta=None)]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "several")
    convert_pairs(str(tmp_path / "one"), tmp_path / "out")
    (group,) = read_groups(tmp_path / "out")
    assert group.pairs == (Pair(0, 1, "none", 0.5), Pair(0, 2, "none"))
    summary = convert_pairs(str(tmp_path / "several"), tmp_path / "out", ConvertOptions(input_split="test"))
    assert summary["rows"]["read"] == 1
    with pytest.raises(UserError, match=r"split 'dev': not there; it has train, test"):
        convert_pairs(str(tmp_path / "several"), tmp_path / "out", ConvertOptions(input_split="dev"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no data in it"):
        convert_pairs(str(tmp_path / "bare"), tmp_path / "other")
