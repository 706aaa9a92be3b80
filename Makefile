# The commands of this project; `make help` lists them. Lanes with their own environments are in mk/*.mk.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --quiet

# Stamps: a second call installs nothing. The light set (no torch) is enough for the quickstart.
DEV := $(VENV)/.stamp-dev
LIGHT := $(VENV)/.stamp-light
ANY := $(if $(wildcard $(DEV)),$(DEV),$(LIGHT))

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test check format clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(DEV)  ## .venv with everything the tests need (torch on the CPU included)

quickstart: $(ANY)  ## the whole loop on the shipped problems, into runs/quickstart
	@$(PY) -m cogpo_jax quickstart

test: $(DEV)  ## the tests, on the CPU
	@$(PY) -m pytest -q -n 2 --dist worksteal $(ARGS)

check: $(DEV)  ## format, lint, types
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

format: $(DEV)  ## what ruff can mend by itself
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

clean:  ## removes runs, caches and environments
	rm -rf runs build dist .venv .venv-* .pytest_cache .ruff_cache .mypy_cache .hypothesis

# Every environment is made by mk/install.sh from a list of pinned packages; those of lanes are in mk/*.mk.
$(LIGHT) $(DEV): $(VENV)/.stamp-%: requirements/%.txt
	@mk/install.sh $(VENV) -r $<
	@$(PIP) --no-deps -e . && touch $@

.venv-%/.stamp: requirements/%.txt
	@mk/install.sh .venv-$* -r $< && touch $@

include $(wildcard mk/*.mk)
