# The mutation lane: faults put into copies of the tree, each of which a named test must notice. Not part of .ci/run.

.PHONY: test-mutants
test-mutants: $(DEV)  ## breaks the code on purpose, fault by fault; every one must be noticed (half an hour on 2 cores)
	@$(PY) tests/mutants/run.py $(ARGS)
