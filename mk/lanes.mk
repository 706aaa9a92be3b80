# Lanes with an environment of their own, made at the first call from requirements/NAME.txt (Makefile, mk/install.sh).

SERVER := tests/sglang_lane/server
LANES := wheel release docs tf sglang tpu

.PHONY: environments docs test-tf test-tpu test-sglang test-py312
environments: $(LANES:%=.venv-%/.stamp)  ## the environments of all lanes of .ci/run

docs: .venv-docs/.stamp  ## the documentation as a site, in site/ (strict: a broken link fails); reads the code, imports none
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --quiet --clean && echo "site/index.html: $$(find site -name '*.html' | wc -l) pages"

test-tf: .venv-tf/.stamp  ## real TensorFlow and tfds read back every field of our shards (1.5 GB)
	@PYTHONPATH=. TF_CPP_MIN_LOG_LEVEL=2 .venv-tf/bin/python -m pytest -q tests_tf $(ARGS)

test-tpu: .venv-tpu/.stamp  ## our programs through the real TPU compiler, for v5e, v5p and v6e; no TPU is needed
	@PYTHONPATH=. .venv-tpu/bin/python -m pytest -q tests_tpu $(ARGS)

test-sglang: .venv-sglang/.stamp $(DEV)  ## CRV and exported students against two real SGLang servers behind a router (1.6 GB)
	@LANE_PYTHON=$(abspath .venv-sglang/bin/python) $(PY) -m pytest -q tests/sglang_lane/lane_pool.py tests/sglang_lane/lane_student.py --timeout=900 $(ARGS)

test-py312: .venv-py312/.stamp  ## the tests on Python 3.12 with a newer jax; without torch, and what compares with it is skipped
	@PYTHONPATH=$(CURDIR) .venv-py312/bin/python -m pytest -q -n 2 $(ARGS)

.venv-py312/.stamp: export ENVIRONMENT_PYTHON = $(shell mk/python.sh python3.12)

.venv-tpu/.stamp: requirements/tpu.txt
	@mk/install.sh .venv-tpu -r $< pytest==$$(sed -n 's/^pytest==//p' requirements/dev.txt) && touch $@

.venv-wheel/.stamp: requirements/light.txt
	@mk/install.sh .venv-wheel -r $< && touch $@

.venv-sglang/.stamp: $(SERVER)/requirements.txt $(SERVER)/requirements-nodeps.txt
	@mk/install.sh .venv-sglang -r $< && mk/install.sh .venv-sglang --no-deps -r $(SERVER)/requirements-nodeps.txt && touch $@
