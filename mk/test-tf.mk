# The TensorFlow lane: real TensorFlow and tfds read our shards, in an environment of its own (1.5 GB).

TF_VENV := .venv-tf
TF := $(TF_VENV)/.stamp

.PHONY: test-tf
test-tf: $(TF)  ## real TensorFlow and tfds read back every field of our shards
	@PYTHONPATH=. TF_CPP_MIN_LOG_LEVEL=2 $(TF_VENV)/bin/python -m pytest -q tests_tf $(ARGS)

$(TF_VENV)/bin/pip:
	@python=$$(mk/python.sh) && echo "making $(TF_VENV) with $$python" && "$$python" -m venv $(TF_VENV)

$(TF): requirements/tf.txt | $(TF_VENV)/bin/pip
	@echo "installing $< (a few minutes, once)"
	@$(TF_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r $< && touch $@
