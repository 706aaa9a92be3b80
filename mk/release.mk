# The wheel, as a user gets it: built, checked, installed into an empty environment, and used from another folder.

RELEASE_VENV := .venv-release
RELEASE := $(RELEASE_VENV)/.stamp
WHEEL_VENV := .venv-wheel
WHEEL := $(WHEEL_VENV)/.stamp

.PHONY: build test-wheel release-check
build: $(RELEASE)  ## the source archive and the wheel, in dist/, checked by twine
	@rm -rf dist build && $(RELEASE_VENV)/bin/python -m build --no-isolation --outdir dist . > dist.log 2>&1 || { tail -20 dist.log; exit 1; }
	@rm -rf dist.log build && $(RELEASE_VENV)/bin/python -m twine check --strict dist/*

test-wheel: build $(WHEEL)  ## the wheel in an environment without this checkout: every stage by cogpo commands
	@$(WHEEL_VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --force-reinstall dist/*.whl
	@mk/test_wheel.sh $(abspath $(WHEEL_VENV)/bin)

release-check: check test-wheel  ## what must hold before a release: checks, wheel, the whole quickstart from the wheel
	@folder=$$(mktemp -d) && cd "$$folder" && "$(abspath $(WHEEL_VENV))/bin/cogpo" quickstart && rm -rf "$$folder"

$(RELEASE_VENV)/bin/pip $(WHEEL_VENV)/bin/pip: %/bin/pip:
	@python=$$(mk/python.sh) && echo "making $* with $$python" && "$$python" -m venv $*

$(RELEASE): requirements/release.txt | $(RELEASE_VENV)/bin/pip
	@echo "installing $<"
	@$(RELEASE_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r $< && touch $@

$(WHEEL): requirements/light.txt | $(WHEEL_VENV)/bin/pip
	@echo "installing $< (a few minutes, once)"
	@$(WHEEL_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r $< && touch $@

# In the wheel's environment, with what executes notebooks beside it.
NOTEBOOK := $(WHEEL_VENV)/.stamp-notebook

.PHONY: test-notebook
test-notebook: build $(NOTEBOOK)  ## the notebook, executed on the CPU at tiny size with the wheel
	@$(WHEEL_VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --force-reinstall dist/*.whl
	@$(WHEEL_VENV)/bin/python mk/test_notebook.py examples/notebooks/cogpo_tpu.ipynb runs/notebook/executed.ipynb

$(NOTEBOOK): requirements/notebook.txt $(WHEEL)
	@echo "installing $<"
	@$(WHEEL_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r $< && touch $@
