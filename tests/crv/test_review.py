"""The report of a CRV run, from its workdir alone: the counts of the ledger, and texts that stay texts."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.report.page import build_page
from crv.driver import run
from crv.ledger import Ledger
from crv.review import read_overview

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "benchmarks")]
from slow_run import options  # noqa: E402
from synthetic import SyntheticPool, problems  # noqa: E402

HOSTILE = "</script></pre><script>alert(1)</script><img src=x onerror=alert(2)>"


class _HostilePool(SyntheticPool):
    """Every chain of thought that it writes is also an attack."""

    async def generate(self, request):
        answer = await super().generate(request)
        return answer if request.agent in ("critic", "verifier") else replace(answer, text=f"{HOSTILE} {answer.text}")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems(120)))
    wanted = replace(options(limit=0), input=str(folder / "in.jsonl"), max_rounds=2)
    wanted = replace(wanted, hygiene=replace(wanted.hygiene, max_characters=28))
    run(wanted, folder / "run", _HostilePool(unusable=0.05))
    return folder / "run"


def test_every_problem_is_in_the_flows_once(workdir):
    info = json.loads((workdir / "manifest.json").read_text())["info"]
    overview = read_overview(workdir)
    assert sum(overview.flows.values()) == overview.problems == info["problems"]["total"]
    assert {"total": overview.problems, **overview.states} == info["problems"]
    assert overview.walked == overview.problems - info["drops"]["too_long"]
    ends = {}
    for path, count in overview.flows.items():
        ends[path[3]] = ends.get(path[3], 0) + count
    assert ends.pop("suitable rewrite") == info["problems"]["rewritten"]
    assert ends.pop("suitable as it was") == info["problems"]["fitting"]
    assert sum(ends.values()) == info["problems"]["dropped"]
    assert ends["dropped before any call"] == info["drops"]["too_long"] > 0


def test_its_counts_are_the_manifests(workdir):
    info = json.loads((workdir / "manifest.json").read_text())["info"]
    overview = read_overview(workdir)
    assert overview.drops == info["drops"]
    assert overview.pairs == info["pairs"]
    assert overview.unusable == info["unusable"]
    assert (
        sum(count for (_, state), count in overview.rounds.items() if state == "rewritten")
        == overview.states["rewritten"]
    )
    words = overview.words
    assert words["easy", "original"].total() + words["hard", "original"].total() == overview.states["rewritten"]
    assert words["all", "suitable"].total() == overview.states["rewritten"] + overview.states["fitting"]
    assert sum(cost.calls for cost in overview.cost) == _calls(workdir)


def _calls(workdir):
    ledger = Ledger(workdir / "ledger.sqlite", read_only=True)
    (count,) = ledger.db.execute("SELECT COUNT(*) FROM calls").fetchone()
    ledger.release()
    return count


def test_every_sort_of_problem_is_shown_as_far_as_the_page_holds(workdir):
    everything = {(p.state, p.label, p.reason) for p in read_overview(workdir, 10_000).shown}
    few = read_overview(workdir, len(everything)).shown
    assert len(few) == len(everything)
    assert {(p.state, p.label, p.reason) for p in few} == everything
    assert read_overview(workdir, 0).shown == ()


class _Scripts(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.handlers, self.policy = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"]


def test_no_script_but_the_pages_own_can_run(workdir):
    page = build_page(crv=read_overview(workdir))
    found = _Scripts(page)
    assert found.tags.count("script") == 1
    assert found.handlers == []
    assert "&lt;script&gt;alert(1)" in page
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert found.policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_the_command_makes_a_page_from_the_workdir_alone(workdir, tmp_path):
    command = [sys.executable, str(HERE.parents[1] / "launch" / "report.py"), f"--data={workdir}", "--problems=7"]
    subprocess.run([*command, f"--output={tmp_path / 'r.html'}"], check=True, capture_output=True, cwd=tmp_path)
    page = (tmp_path / "r.html").read_text()
    assert page.count('<details class="card problem"') == 7
    assert "Mini-tasks" in page


def test_a_run_without_records_yet_has_a_page(workdir, tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes((workdir / "ledger.sqlite").read_bytes())
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.db.execute("DELETE FROM outcomes WHERE rowid % 2")
    ledger.release()
    page = build_page(crv=read_overview(tmp_path))
    assert "not finished yet" in page
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.forget_outcomes()
    ledger.release()
    assert "Problems, side by side" not in build_page(crv=read_overview(tmp_path))


def test_a_folder_without_a_ledger_is_named(tmp_path):
    with pytest.raises(UserError, match="no ledger in it"):
        read_overview(tmp_path)
