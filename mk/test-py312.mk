# The lane of newer versions: Python 3.12 with a newer jax than the main set's, the last one for 3.11. Without torch: what
# compares with it is skipped, counted and named at the end.

PY312_VENV := .venv-py312
PY312 := $(PY312_VENV)/.stamp

.PHONY: test-py312
test-py312: $(PY312)  ## the tests on Python 3.12 with a newer jax, without torch
	@PYTHONPATH=$(CURDIR) $(PY312_VENV)/bin/python -m pytest -q -n 2 $(ARGS)

$(PY312_VENV)/bin/pip:
	@python=$$(mk/python.sh python3.12) && echo "making $(PY312_VENV) with $$python" && "$$python" -m venv $(PY312_VENV)

$(PY312): requirements/py312.txt | $(PY312_VENV)/bin/pip
	@echo "installing $< (a few minutes, once)"
	@$(PY312_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r $< && touch $@
