"""`cogpo` from any folder: its commands, its configs by name, and what it answers to bad input."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from cogpo_jax import cli, config_files
from cogpo_jax.errors import UserError

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.py") if path.stem != "checkout")
OWN = """
from cogpo_jax.configs import tiny_cpu

def get_config(groups="8"):
    config = tiny_cpu.get_config()
    config.batch.groups = int(groups)
    return config
"""
HELP_OF_ALL = """
import sys
from absl import flags
from cogpo_jax import cli
for number, name in enumerate(cli.COMMANDS):
    if number: print("END OF HELP")
    known = set(flags.FLAGS)
    try: cli.command(name, ["--help"])
    except SystemExit: print("jax:", "jax" in sys.modules)
    for flag in set(flags.FLAGS) - known: delattr(flags.FLAGS, flag)
"""


def cogpo(folder, *arguments):
    """The command as a person types it in `folder`, in this process: (returncode, stdout, stderr)."""
    known, argv = set(flags.FLAGS), list(sys.argv)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(["cogpo", *arguments])
    except SystemExit as end:
        return subprocess.CompletedProcess(arguments, end.code, out.getvalue(), err.getvalue())
    finally:
        sys.argv[:] = argv
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def python(folder, *arguments):
    """The same by an interpreter of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_help_lists_every_command_with_its_sentence(tmp_path):
    listed = cogpo(tmp_path, "--help").stdout
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "] == list(
        cli.COMMANDS
    )


def test_every_commands_help_shows_its_flags_without_jax(tmp_path):
    done = python(tmp_path, "-c", HELP_OF_ALL)
    assert done.returncode == 0, done.stderr
    helps = done.stdout.split("END OF HELP\n")
    assert [("Flags:" in text, text.endswith("jax: False\n")) for text in helps] == [(True, True)] * len(cli.COMMANDS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_documented_script_names_its_command(script):
    assert [name for name in cli.COMMANDS if f'checkout.run("{name}")' in (ROOT / "launch" / script).read_text()]


def test_a_documented_script_is_its_command_although_one_is_named_as_a_package(tmp_path):
    done = python(tmp_path, str(ROOT / "launch" / "crv.py"), "--help")
    assert (done.returncode, done.stdout) == (0, cogpo(tmp_path, "crv", "--help").stdout)


def test_a_script_of_the_checkout_is_a_command_too(tmp_path):
    done = python(tmp_path, "-P", "-m", "cogpo_jax", "teaches", "--help")
    assert (done.returncode, "benchmarks/teaches.py" in done.stdout) == (0, True), done.stderr


def test_an_unknown_command_is_one_line_with_the_nearest(tmp_path):
    done = cogpo(tmp_path, "trian")
    assert (done.returncode, done.stderr) == (
        2,
        "error: command line: 'trian': no such command; did you mean train?\n",
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cogpo_tqu", "cogpo_tqu: no such file, and no config of this name; did you mean cogpo_tpu?"),
        ("configs/cogpo_tpu.py:7b", "configs/cogpo_tpu.py: no such file, and no config of this name; did you mean "),
        ("mine.py", "mine.py: no such file, and no config of this name; the shipped ones are cogpo_tpu, "),
        ("cogpo_tpu:8b", "configs/cogpo_tpu.py:8b: no such size; known are 0.5b,"),
    ],
)
def test_a_config_that_is_not_there_is_one_line(tmp_path, value, message):
    done = cogpo(tmp_path, "train", f"--config={value}", "--workdir=run")
    assert done.returncode == 2
    assert f": {message}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def get_config(:\n", "SyntaxError: "),
        ("get = None\n", "has no get_config()"),
    ],
)
def test_what_is_wrong_with_ones_own_config_file_is_said(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=f"mine.py: {re.escape(message)}"):
        config_files.load(str(tmp_path / "mine.py"))


def test_a_config_without_sizes_is_asked_for_none():
    with pytest.raises(UserError, match="has no sizes"):
        config_files.load("tiny_cpu:3b")


def test_a_shipped_config_and_its_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cogpo_tpu:0.5b", "sft_tpu:7b", "tiny_cpu"):
        assert Path(config_files.load(name).model).is_file()
    crv = config_files.load("crv_recorded")
    assert Path(crv.input).is_file()
    assert Path(crv.pool.recordings).is_file()


def test_a_path_below_the_working_folder_stays_as_it_is():
    assert config_files.shipped_file("configs/models/tiny.json") == "configs/models/tiny.json"
    assert config_files.shipped_file("configs/models/none.json") == "configs/models/none.json"


def test_ones_own_config_file_may_begin_with_a_shipped_one(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    done = cogpo(tmp_path, "configs", "show", "mine.py:12")
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("batch.groups"))
    assert line.split()[:4] == ["batch.groups", "=", "12", "mine.py:6"]
    assert "groups (sft: examples) per optimizer step" in line


def test_a_config_flag_takes_a_name_in_one_word_or_two(tmp_path):
    for words in (["--config=tiny_cpu"], ["--config", "tiny_cpu"]):
        done = cogpo(tmp_path, "train", *words, "--config.batch.groups=2")
        assert (done.returncode, done.stderr) == (2, "error: --workdir: missing; see --help\n")


@pytest.mark.parametrize("name", [*config_files.names(), *(f"cogpo_tpu:{size}" for size in ("0.5b", "14b"))])
def test_every_field_of_a_shipped_config_has_a_comment_and_a_place(name):
    fields = config_files.describe(name)
    assert [f.name for f in fields if not f.where] == []
    assert [f.name for f in fields if not f.comment] == []


def test_the_place_is_that_of_the_last_setting():
    at = {f.name: f.where for f in config_files.describe("cogpo_tpu:7b")}
    lines = (ROOT / "configs" / "cogpo_tpu.py").read_text().splitlines()
    assert "config.rows.length = 16384" in lines[int(at["rows.length"].removeprefix("cogpo_tpu.py:")) - 1]
    assert at["mesh.tensor"].startswith("tiny_cpu.py:")
    assert {f.name: f.where for f in config_files.describe("cogpo_tpu:14b")}["mesh.tensor"].startswith("cogpo_tpu.py:")


@pytest.mark.parametrize("config", [["--config=tiny_cpu"], ["--config", "tiny_cpu"]])
def test_of_the_fields_given_the_one_that_is_not_there_is_named(tmp_path, config):
    fields = ["--config.checkpoint.every=1", "--config.log.every=3", "--config.beta.small=0.1"]
    done = cogpo(tmp_path, "train", *config, *fields, "--workdir=run")
    assert (done.returncode, done.stderr.split(": ")[1]) == (2, "config.log.every")


def test_loading_a_config_that_has_no_such_size_is_a_user_error():
    with pytest.raises(UserError, match="no such size"):
        config_files.load("cogpo_tpu:8b")
