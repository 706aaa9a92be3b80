"""What README and docs name is there: files, make targets, commands, flags, config fields, linked pages."""

import re
from pathlib import Path

import pytest

from cogpo_jax import cli, config_files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
TARGETS = set(
    re.findall(r"^([a-z0-9-]+):", "\n".join(p.read_text() for p in [ROOT / "Makefile", *ROOT.glob("mk/*.mk")]), re.M)
)
FILE = re.compile(
    r"(?<![\w/.*-])((?:cogpo_jax|crv|configs|launch|benchmarks|examples|tests|docs|mk|requirements|\.ci|\.github)/[\w./-]*\w)"
)
FLAG = re.compile(r"--([a-z][\w.]*)")


def made_or_there(name):
    """A file or folder of the checkout, or a module's dotted name written as a path."""
    return (ROOT / name).exists() or (ROOT / f"{name}.py").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page):
    named = set(FILE.findall(page.read_text(encoding="utf-8")))
    assert sorted(name for name in named if not made_or_there(name)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_that_a_page_names_is_there(page):
    named = set(re.findall(r"`make ([a-z0-9-]+)", page.read_text(encoding="utf-8")))
    assert sorted(named - TARGETS) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_flag_that_a_page_names_is_there(page):
    wrong = []
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    for line in re.findall(r"(?:`|^ {4,})cogpo ([a-z][^`\n]*)", text, re.MULTILINE):
        name = line.split()[0].strip("`.,;:)")
        if name not in cli.COMMANDS:
            wrong += [f"cogpo {name}"] if re.fullmatch(r"[a-z]+(-[a-z]+)*", name) and name not in cli.SCRIPTS else []
            continue
        known = set(cli.COMMANDS[name].get("flags", {}))
        flags = (flag.rstrip(".") for flag in FLAG.findall(line))
        wrong += [
            f"cogpo {name} --{flag}"
            for flag in flags
            if not flag.startswith("config.") and flag not in known | {"help"}
        ]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_pages_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link) and re.search(r"[./]", link)]
    assert sorted(link for link in local if not (page.parent / link).exists()) == []


def test_every_config_field_that_a_page_names_is_one():
    fields = {f.name for name in config_files.names() for f in config_files.describe(name)}
    known = {".".join(field.split(".")[: i + 1]) for field in fields for i in range(len(field.split(".")))}
    named = {
        (page.name, name.rstrip("."))
        for page in PAGES
        for name in re.findall(r"--config\.([a-z][\w.]*)", page.read_text())
    }
    assert (
        sorted((page, name) for page, name in named if name not in known | {"a.b"} and not name.startswith("agents."))
        == []
    )
