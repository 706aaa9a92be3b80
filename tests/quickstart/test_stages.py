"""A quickstart typed twice does nothing twice; interrupted it goes on; after a change it starts anew."""

import pytest

from cogpo_jax import cli
from cogpo_jax.errors import RunError
from cogpo_jax.quickstart import Stage, code_digest, run_stage, stages

# Stands for the package's commands: `python -m cogpo_jax do FOLDER`.
SCRIPT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[2]); folder.mkdir(parents=True, exist_ok=True)
count = len(list(folder.iterdir())); (folder / str(count)).touch()
if "fail" in sys.argv: sys.exit(3)
print("noise"); print(json.dumps({"runs": count + 1}))
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "cogpo_jax").mkdir()
    (tmp_path / "cogpo_jax" / "__main__.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def do(root, *more, before="", salt=""):
    stage = Stage("do", ("do", str(root / "run" / "out"), *more), "out", salt)
    return run_stage(stage, root / "run", before)


def test_a_finished_stage_is_not_run_again(root):
    first, key = do(root)
    second, same = do(root)
    assert (first.result, first.skipped) == ({"runs": 1}, False)
    assert (second.result, second.skipped, second.seconds) == ({"runs": 1}, True, first.seconds)
    assert key == same


def test_a_failed_stage_is_an_error_and_goes_on_from_its_output(root):
    with pytest.raises(RunError, match="exit code 3"):
        do(root, "fail")
    with pytest.raises(RunError):
        do(root, "fail")
    assert len(list((root / "run" / "out").iterdir())) == 2


@pytest.mark.parametrize("change", [{"before": "other"}, {"salt": "torch"}])
def test_a_stale_stage_starts_from_nothing(root, change):
    first, _ = do(root)
    again, _ = do(root, **change)
    assert (again.result, again.skipped) == (first.result, False)
    assert [p.name for p in (root / "run" / "out").iterdir()] == ["0"]


def test_a_lost_output_is_made_again(root):
    do(root)
    (root / "run" / "out" / "0").unlink()
    (root / "run" / "out").rmdir()
    assert do(root)[0].skipped is False


def test_a_stage_that_only_prints_leaves_the_run_folder_alone(root):
    do(root)
    printing = Stage("print", ("do", str(root / "elsewhere")), None)
    assert run_stage(printing, root / "run", "a")[0].result == {"runs": 1}
    assert run_stage(printing, root / "run", "b")[0].result == {"runs": 2}
    assert (root / "run" / "out" / "0").exists()


def test_the_code_is_part_of_what_makes_a_stage_stale(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    before = code_digest([tmp_path])
    (tmp_path / "a.py").write_text("x = 2")
    assert code_digest([tmp_path]) != before


def test_every_stage_is_a_command_of_the_project_with_its_own_output():
    todo = stages("runs/a folder")
    assert [stage.name for stage in todo] == ["crv", "tokenizer", "sft", "cogpo", "export", "compare", "report"]
    assert {stage.command[0] for stage in todo} <= set(cli.COMMANDS)
    outputs = [stage.output for stage in todo if stage.output]
    assert len(set(outputs)) == len(outputs)
    assert "--data=runs/a folder/crv" in todo[1].command
    assert todo[0].command[1] == "--config=crv_recorded"
