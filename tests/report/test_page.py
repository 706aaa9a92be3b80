"""The page about a run: whole without anything from outside, honest, and safe to open whatever a model wrote."""

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cogpo_jax.records import Group, Pair, Response, write_data
from cogpo_jax.report.page import _answers, build_page, honest_sentence, shown_problems
from cogpo_jax.report.run_files import Data, Training, heldout_table, read_data

HOSTILE = '<script>alert("x")</script>'
REPORT = Path(__file__).parents[2] / "launch" / "report.py"


def group(name, label="easy"):
    def response(number, kind, origin, text):
        certificate = json.dumps({"verdict": "correct", "rule": f"exact {HOSTILE}"})
        return Response(f"r{number}", "", origin, "model", f"{text} {HOSTILE}", "So 4.", "", kind, certificate)

    responses = (
        response(0, "suitable", "rewrite", f"{name}: two and two are 4"),
        response(1, label, "teacher", f"{name}: 4"),
        response(2, "incorrect", "rule", f"{name}: two and two are 5"),
    )
    pairs = (Pair(0, 1, "small"), Pair(1, 2, "medium"), Pair(0, 2, "large"))
    return Group(name, "", f"2+2 {HOSTILE}", "4", responses, pairs, source="test")


def pair(problem, longer, margin):
    tokens = (20, 10) if longer else (10, 20)
    return {
        "problem_id": problem,
        "gap": "small",
        "chosen_tokens": tokens[0],
        "rejected_tokens": tokens[1],
        "chosen_ref_logp": -20.0,
        "rejected_ref_logp": -20.0,
        "chosen_logp": -20.0 + margin,
        "rejected_logp": -20.0,
    }


INFO = {"problems": {"total": 8}, "labels": {"easy": 5, "hard": 2}, "drops": {"gold_unreadable": 1}}
DATA = Data(INFO, {"train": (group("t1"), group("t2", "hard")), "validation": tuple(group(f"v{i}") for i in range(4))})
SFT = Training(
    {},
    tuple({"step": i, "loss": 5 - i / 10, "seconds": 0.5} for i in range(1, 9)),
    ({"step": 8, "heldout_nll": 4.5, "unigram_nll": 5.5},),
    (),
)
COGPO = Training(
    {"optimizer": {"learning_rate": 1e-4}},
    tuple({"step": i, "loss": 0.69 - i / 100, "margin": {"small": i / 10}, "seconds": 1.0} for i in range(1, 9)),
    (),
    tuple(pair(f"v{i}", longer=i % 2 == 0, margin=1.0 - 0.5 * (i % 4)) for i in range(12)),
)


class Tags(HTMLParser):
    """Counts tags, and collects what would be loaded from outside."""

    def __init__(self, page):
        super().__init__()
        self.open, self.outside, self.names = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing():
    page = build_page(DATA, SFT, COGPO)
    tags = Tags(page)
    assert tags.open == []
    assert tags.outside == []
    assert "url(" not in page
    assert "@import" not in page
    assert tags.names.count("figure") == 4
    assert page.count('class="bars') == 4


def test_what_a_model_wrote_stays_text():
    page = build_page(DATA, SFT, COGPO)
    assert "script" not in Tags(page).names
    assert "&lt;script&gt;" in page


def test_counts_drops_and_pairs_are_on_the_page():
    text = re.sub(r"<[^>]+>", " ", build_page(DATA))
    assert re.search(r"easy\s+5\s+hard\s+2", text)
    assert re.search(r"gold unreadable\s+1", text)
    assert re.search(r"small\s+2\s+4\s+100%", text)


def test_sections_without_their_part_are_left_out():
    page = build_page(sft=SFT)
    assert "SFT on the suitable responses" in page
    assert "Five problems" not in page
    assert "held-out pairs" not in page.lower()


def test_the_answers_during_training_are_curves():
    def read(step, accuracy):
        answers = {
            "accuracy": accuracy,
            "accuracy_low": 0.1,
            "accuracy_high": 0.9,
            "truncated": 0.0,
            "tokens_mean": 7.0,
        }
        return {"step": step, "generate": answers}

    some = dataclasses.replace(SFT, evaluations=(*SFT.evaluations, read(4, 0.25), read(8, 0.5)))
    accuracy, tokens = _answers(some)
    assert set(accuracy.series) == {"right", "95% from", "95% to", "cut off"}
    assert len(accuracy.series["right"]) == 2
    assert set(tokens.series) == {"mean"}
    assert build_page(sft=some).count("Answers during SFT") == 2
    assert "Answers during" not in build_page(sft=SFT, cogpo=COGPO)


def test_five_problems_held_out_first_and_labels_in_turn():
    cards = shown_problems(DATA)
    assert [card["id"] for card in cards] == ["v0", "t2", "v1", "v2", "v3"]
    assert [column["kind"] for column in cards[0]["columns"]] == ["easy", "suitable", "incorrect"]


@pytest.mark.parametrize(
    ("longer", "shorter", "verdict"),
    [(1.0, 1.0, "not all that it learned"), (1.0, -1.0, "cannot be told from chance"), (0.0, 0.0, "from chance")],
)
def test_the_sentence_about_length_follows_the_numbers(longer, shorter, verdict):
    rows = [pair(f"p{i}", longer=i % 2 == 0, margin=longer if i % 2 == 0 else shorter) for i in range(40)]
    assert verdict in honest_sentence(heldout_table(rows))


def test_the_sentence_says_so_where_the_student_leans_on_length():
    rows = [pair(f"p{i}", longer=i % 2 == 0, margin=1.0 if i % 2 == 0 or i % 5 < 3 else -1.0) for i in range(200)]
    assert "leans on length" in honest_sentence(heldout_table(rows))


def test_the_command_reads_run_folders_and_prints_the_table(tmp_path):
    write_data(tmp_path / "data", groups={"train": [group("t1")], "validation": [group("v1")]}, info=INFO)
    workdir = tmp_path / "cogpo"
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in COGPO.metrics) + '{"step": 9, "lo'
    )
    (workdir / "eval_pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in COGPO.pairs))
    command = [sys.executable, str(REPORT), f"--data={tmp_path / 'data'}", f"--cogpo={workdir}"]
    done = subprocess.run([*command, f"--output={tmp_path / 'r.html'}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["heldout"] == json.loads(json.dumps(heldout_table(COGPO.pairs)))
    assert "v1" in (tmp_path / "r.html").read_text()


def test_a_folder_without_a_run_is_named_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, str(REPORT), f"--sft={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "metrics.jsonl" in done.stderr


def test_read_data_gives_back_the_groups(tmp_path):
    write_data(tmp_path, groups={"train": [group("t1")]}, info=INFO)
    groups = read_data(tmp_path).groups["train"]
    assert list(groups) == list(groups) == [group("t1")], "read anew each time"
