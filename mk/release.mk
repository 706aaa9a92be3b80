# The wheel, as a user gets it: built, checked, installed into an empty environment, and used from another folder.

WHEEL_VENV := .venv-wheel

.PHONY: build test-wheel test-notebook release-check
build: .venv-release/.stamp  ## the source archive and the wheel, in dist/, checked by twine
	@rm -rf dist build && .venv-release/bin/python -m build --no-isolation --outdir dist . > dist.log 2>&1 || { tail -20 dist.log; exit 1; }
	@rm -rf dist.log build && .venv-release/bin/python -m twine check --strict dist/*

test-wheel: build $(WHEEL_VENV)/.stamp  ## the wheel in an environment without this checkout: every stage by cogpo commands
	@$(WHEEL_VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --force-reinstall dist/*.whl
	@mk/test_wheel.sh $(abspath $(WHEEL_VENV)/bin)

release-check: check test-wheel  ## what must hold before a release: checks, wheel, the whole quickstart from the wheel
	@folder=$$(mktemp -d) && cd "$$folder" && "$(abspath $(WHEEL_VENV))/bin/cogpo" quickstart && rm -rf "$$folder"

# In the wheel's environment, with what executes notebooks beside it.
test-notebook: build $(WHEEL_VENV)/.stamp-notebook  ## the notebook, executed on the CPU at tiny size with the wheel
	@$(WHEEL_VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --force-reinstall dist/*.whl
	@$(WHEEL_VENV)/bin/python mk/test_notebook.py examples/notebooks/cogpo_tpu.ipynb runs/notebook/executed.ipynb

$(WHEEL_VENV)/.stamp-notebook: requirements/notebook.txt $(WHEEL_VENV)/.stamp
	@mk/install.sh $(WHEEL_VENV) -r $< && touch $@
