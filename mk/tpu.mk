# The TPU compiler lane: the pinned libtpu compiles our kernels and programs for v5e, v5p and v6e; no TPU is needed.

TPU_VENV := .venv-tpu
TPU := $(TPU_VENV)/.stamp

.PHONY: test-tpu
test-tpu: $(TPU)  ## our programs through the real TPU compiler (two minutes on 2 cores)
	@PYTHONPATH=. $(TPU_VENV)/bin/python -m pytest -q tests_tpu $(ARGS)

$(TPU_VENV)/bin/pip:
	@python=$$(mk/python.sh) && echo "making $(TPU_VENV) with $$python" && "$$python" -m venv $(TPU_VENV)

$(TPU): requirements/tpu.txt | $(TPU_VENV)/bin/pip
	@echo "installing $< (a few minutes, once)"
	@$(TPU_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r $< pytest==$$(sed -n 's/^pytest==//p' requirements/dev.txt) && touch $@
