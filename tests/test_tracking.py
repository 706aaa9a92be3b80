"""wandb and trackio get config, commit and every step's numbers, and a run that goes on keeps its id."""

import json
import sys
import types

import pytest

from cogpo_jax import tracking
from cogpo_jax.errors import UserError
from cogpo_jax.tracking import Trackers

CONFIG = {
    "objective": "cogpo",
    "beta": {"small": 0.1},
    "log": {"tensorboard": False, "wandb": "aligned", "trackio": ""},
}
LINE = {"step": 3, "loss": 0.5, "margin": {"small": 0.1, "large": 0.2}, "note": "text"}


class Run:
    """Stands for a service's run: keeps what it was told."""

    def __init__(self, options):
        self.options, self.lines, self.finished = options, [], False

    def log(self, numbers, step):
        self.lines.append((step, numbers))

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """The runs that a stand-in for wandb and trackio was asked to begin."""
    begun = []
    for service in tracking.SERVICES:
        module = types.ModuleType(service)
        module.__spec__ = types.SimpleNamespace(name=service)
        module.init = lambda **options: begun.append(Run(options)) or begun[-1]
        monkeypatch.setitem(sys.modules, service, module)
    return begun


def test_a_service_gets_the_config_the_commit_and_the_numbers_by_gap(runs, tmp_path):
    trackers = Trackers(CONFIG, tmp_path / "run7")
    trackers.write(LINE)
    trackers.write(LINE, prefix="eval/")
    trackers.close()
    (run,) = runs
    assert (run.options["project"], run.options["name"], run.options["resume"]) == ("aligned", "run7", "allow")
    assert run.options["config"]["beta"] == {"small": 0.1}
    assert run.options["config"]["code"]["version"]
    assert run.lines[0] == (3, {"loss": 0.5, "margin/small": 0.1, "margin/large": 0.2})
    assert set(run.lines[1][1]) == {"eval/loss", "eval/margin/small", "eval/margin/large"}
    assert run.finished


def test_a_run_that_goes_on_keeps_its_id_and_another_has_another(runs, tmp_path):
    for folder in ("a", "a", "b"):
        Trackers(CONFIG, tmp_path / folder).close()
    first, again, other = (run.options["id"] for run in runs)
    assert first == again != other


def test_both_services_may_be_asked_for(runs, tmp_path):
    Trackers(CONFIG | {"log": {"wandb": "p", "trackio": "q"}}, tmp_path / "run").close()
    assert [run.options["project"] for run in runs] == ["p", "q"]
    ids = json.loads((tmp_path / "run" / tracking.IDS_FILE).read_text())
    assert [run.options.get("id", run.options["name"]) for run in runs] == [ids["wandb"], ids["trackio"]]


def test_without_a_service_nothing_is_written(tmp_path):
    trackers = Trackers(CONFIG | {"log": {"tensorboard": True}}, tmp_path)
    trackers.write(LINE)
    trackers.close()
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_installed_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"log\.trackio: q: the package is not installed: pip install trackio"):
        tracking.check({"trackio": "q"})
