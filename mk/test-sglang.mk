# The SGLang lane: two real servers (CPU) behind a real router, in an environment of its own (1.6 GB; 4 GB of memory).

SGLANG_VENV := .venv-sglang
SGLANG := $(SGLANG_VENV)/.stamp
SERVER := tests/sglang_lane/server

.PHONY: test-sglang
test-sglang: $(SGLANG) $(DEV)  ## CRV and exported students against real SGLang servers
	@LANE_PYTHON=$(abspath $(SGLANG_VENV)/bin/python) $(PY) -m pytest -q tests/sglang_lane/lane_pool.py tests/sglang_lane/lane_student.py --timeout=900 $(ARGS)

$(SGLANG_VENV)/bin/pip:
	@python=$$(mk/python.sh) && echo "making $(SGLANG_VENV) with $$python" && "$$python" -m venv $(SGLANG_VENV)

$(SGLANG): $(SERVER)/requirements.txt $(SERVER)/requirements-nodeps.txt | $(SGLANG_VENV)/bin/pip
	@echo "installing $< (a few minutes, once)"
	@$(SGLANG_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r $(SERVER)/requirements.txt
	@$(SGLANG_VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -r $(SERVER)/requirements-nodeps.txt && touch $@
