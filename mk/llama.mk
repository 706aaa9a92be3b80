# The lane with a real model: llama.cpp's server and 20 real problems (about 25 minutes on two cores; not in .ci/run).

LLAMA_MODEL ?=
LLAMA_SERVER ?= .llama/build/bin/llama-server

.PHONY: test-llama
test-llama: $(DEV)  ## CRV before a real model: make test-llama LLAMA_MODEL=FILE.gguf
	@[ -f "$(LLAMA_MODEL)" ] || { echo "error: LLAMA_MODEL: '$(LLAMA_MODEL)': no such file: give the .gguf file of an instruct model" >&2; exit 2; }
	@[ -x "$(LLAMA_SERVER)" ] || PYTHON="$$(mk/python.sh)" mk/build_llama_server.sh .llama
	@LLAMA_MODEL=$(abspath $(LLAMA_MODEL)) LLAMA_SERVER=$(abspath $(LLAMA_SERVER)) $(PY) -m pytest -q -s -n 0 tests/llama_lane/lane_llama.py $(ARGS)
