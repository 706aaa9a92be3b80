"""What leaves CRV: balanced pairs, the authors' JSON, a Hugging Face folder."""

import base64
import hashlib
import html
import json
import os
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.records import Group, Pair, Response, read_groups, read_sft, splits, validate_group
from cogpo_jax.records.schema import decode_sft
from crv import review
from crv.driver import run
from crv.output import balanced, chosen_is_longer, count_directions, make_group
from crv.problems import Problem, read_problems
from crv.review import take_audit, write_audit

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from scripted import ScriptedPool, label  # noqa: E402
from slow_run import options  # noqa: E402


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    monkey = pytest.MonkeyPatch()
    monkey.chdir(HERE.parents[1])
    folder = tmp_path_factory.mktemp("run")
    run(replace(options(limit=30), also=("authors", "datasets", "array_record")), folder)
    monkey.undo()
    return folder


def test_the_authors_json_holds_every_pair(workdir):
    for split in ("train", "validation"):
        rows = json.loads((workdir / "authors" / f"{split}.json").read_text())
        groups = list(read_groups(workdir, split))
        assert len(rows) == sum(len(group.pairs) for group in groups)
        assert {row["gap"]: row["beta"] for row in rows} == {"small": 0.1, "medium": 0.2, "large": 0.5}
        assert rows[0]["prompt"] == groups[0].prompt
        assert rows[0]["chosen"].endswith(groups[0].responses[groups[0].pairs[0].chosen].solution)


def test_datasets_opens_the_folder_with_every_field(workdir):
    datasets = pytest.importorskip("datasets")
    sft = datasets.load_from_disk(str(workdir / "datasets" / "sft"))
    assert [row["thought"] for row in sft["train"]] == [row.thought for row in read_sft(workdir, "train")]
    groups = datasets.load_from_disk(str(workdir / "datasets" / "groups"))["train"]
    for row, group in zip(groups, read_groups(workdir, "train"), strict=True):
        assert [response["kind"] for response in row["responses"]] == [response.kind for response in group.responses]
        assert [(pair["chosen"], pair["rejected"]) for pair in row["pairs"]] == [
            (p.chosen, p.rejected) for p in group.pairs
        ]


def group(name, chosen, rejected):
    def response(i, kind, length):
        return Response(i, "", "teacher", "m", "", "", i * length, kind, "")

    return Group(
        name, "", "p", "1", (response("a", "suitable", chosen), response("b", "easy", rejected)), (Pair(0, 1, "small"),)
    )


MANY = [group(str(i), 30, 10) for i in range(30)] + [group(f"s{i}", 10, 30) for i in range(10)] + [group("e", 20, 20)]


def test_weights_make_both_directions_count_alike():
    groups = list(balanced(MANY, count_directions(MANY), "weight", lambda _: 0.5))
    totals = {True: 0.0, False: 0.0, None: 0.0}
    for g in groups:
        validate_group(g)
        totals[chosen_is_longer(g, g.pairs[0])] += g.pairs[0].weight
    assert totals[True] == pytest.approx(totals[False]) == pytest.approx(20)
    assert totals[None] == 1


def test_dropping_leaves_as_many_of_each_direction():
    dice = {g.problem_id: i / 30 for i, g in enumerate(MANY)}
    groups = list(balanced(MANY, count_directions(MANY), "drop", lambda name: dice[name.split("/")[0]]))
    longer = [chosen_is_longer(g, g.pairs[0]) for g in groups]
    assert longer.count(True) == longer.count(False) == 10
    assert longer.count(None) == 1


def test_a_response_without_a_pair_leaves_with_it():
    extra = replace(
        MANY[0], responses=(*MANY[0].responses, Response("c", "", "rule", "m", "", "", "ccc", "incorrect", ""))
    )
    both = replace(extra, pairs=(Pair(0, 1, "small"), Pair(0, 2, "large")))
    directions = count_directions([both, *MANY[1:], *[replace(g, pairs=(Pair(1, 0, "large"),)) for g in MANY]])
    (left,) = balanced([both], directions, "drop", lambda name: 0.99 if name.endswith("small") else 0.0)
    assert [response.id for response in left.responses] == ["a", "c"]
    assert left.pairs == (Pair(0, 1, "large"),)
    validate_group(left)


def test_an_audit_is_counted_in_the_manifest(workdir, tmp_path):
    page = write_audit(workdir, 5).read_text()
    names = [html.unescape(name) for name in re.findall(r'data-name="([^"]*)"', page)]
    assert len(names) >= 12
    assert page.count("<section>") == 5
    assert "http" not in page.replace("http-equiv", ""), "nothing is fetched"
    verdicts = {name: "reject" if name.endswith("wrong-0") else "accept" for name in names}
    (tmp_path / "audit.json").write_text(json.dumps({"verdicts": verdicts}))
    table = take_audit(workdir, tmp_path / "audit.json")
    assert sum(table["incorrect"].values()) <= 5
    assert table["suitable"] == {"accept": 5, "reject": 0}
    options_now = replace(options(limit=30), also=("authors", "datasets", "array_record"))
    os.chdir(HERE.parents[1])
    run(options_now, workdir)
    assert json.loads((workdir / "manifest.json").read_text())["info"]["audit"] == table


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{}", "not what an audit page saves"),
        ('{"verdicts": {"a": "maybe"}}', "'maybe'"),
        ('{"verdicts": {"a": "accept"}}', "no such response"),
    ],
)
def test_a_strange_audit_is_refused(workdir, tmp_path, said, message):
    (tmp_path / "audit.json").write_text(said)
    with pytest.raises(UserError, match=message):
        take_audit(workdir, tmp_path / "audit.json")


def test_no_script_but_the_audit_pages_own_can_run(workdir):
    page = write_audit(workdir, 5).read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page


def test_a_texts_markup_stays_text():
    row = {
        "problem": {"problem_id": "<i>", "problem": "<script>alert(1)</script>", "answer": '"&'},
        "responses": [dict(vars(MANY[0].responses[0]), text="</pre><script>", certificate="{}", model='"><b>')],
    }
    page = review.audit_page([row])
    assert page.count("<script>") == 1
    assert "<b>&#34;&amp;</b>" in page


def test_problems_come_from_a_datasets_folder_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"problem": f"What is {i} + 1?", "answer": str(i + 1), "problem_id": str(i), "extra": [i]} for i in range(3)
    ]
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "set"))
    read = list(read_problems(f"hf:{tmp_path / 'set'}:test"))
    assert [(p.problem_id, p.answer) for p in read] == [("0", "1"), ("1", "2"), ("2", "3")]
    with pytest.raises(UserError, match=r"hf:nowhere/at-all"):
        list(read_problems("hf:nowhere/at-all"))


DAMAGED = {"problem_id": "a\ud800", "problem": "What is $2 \times 3$?", "answer": "6", "cot": "It is \x0crac{12}{2}."}


@pytest.mark.parametrize(("repair", "cot"), [(True, r"It is \frac{12}{2}."), (False, "It is \x0crac{12}{2}.")])
def test_damage_is_mended_where_it_is_wished_half_pairs_always(tmp_path, repair, cot):
    (tmp_path / "in.jsonl").write_text(json.dumps(DAMAGED))
    repaired = Counter()
    (problem,) = read_problems(str(tmp_path / "in.jsonl"), repair, repaired)
    assert problem.problem_id == "a\ufffd"
    assert problem.cot == cot
    assert repaired == ({"problem_id": 1, "problem": 1, "cot": 1} if repair else {"problem_id": 1})


def test_mended_places_are_counted_in_the_manifest_and_half_pairs_in_answers_stop_nothing(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(DAMAGED | {"cot": "Two times three makes six.\nThe answer is 6"}))
    wanted = replace(options(limit=0), input=str(tmp_path / "in.jsonl"), heldout=0.0)
    wrong = "Two and three make \ud83d five in the end.\nThe answer is 5"
    run(wanted, tmp_path / "run", ScriptedPool(critic=[label("medium")], corrupter=[wrong]))
    info = json.loads((tmp_path / "run" / "manifest.json").read_text())["info"]
    assert info["repaired_places"] == {"problem_id": 1}
    (group,) = read_groups(tmp_path / "run", "train")
    assert {r.kind: r.thought for r in group.responses}["incorrect"] == "Two and three make \ufffd five in the end."


def test_array_record_holds_the_records(workdir):
    module = pytest.importorskip("array_record.python.array_record_module")
    files = sorted((workdir / "array_record" / "sft").glob("sft-train.array_record-*"))
    texts = {decode_sft(data).id for file in files for data in module.ArrayRecordReader(str(file)).read_all()}
    assert texts == {row.id for row in read_sft(workdir, "train")}
    count = sum(module.ArrayRecordReader(str(file)).num_records() for file in files)
    assert count == splits(workdir)["sft"]["train"]


def test_the_students_own_mistake_comes_before_all_others():
    problem = Problem("p", "What is 1 + 1?", "2")
    texts = {"teacher": "original", "student": "student-0", "solver": "solver-0", "rule": "a-rule"}
    responses = [Response("s", "", "teacher", "", "", "", "It is 2.", "suitable", "{}")]
    responses += [
        Response(name, "", origin, "", "", "", f"It is 3, says {name}.", "incorrect", "{}")
        for origin, name in texts.items()
    ]
    group = make_group(problem, responses)
    assert [r.origin for r in group.responses if r.kind == "incorrect"] == ["student"]
    without = make_group(problem, [r for r in responses if r.origin != "student"])
    assert [r.origin for r in without.responses if r.kind == "incorrect"] == ["teacher"]
