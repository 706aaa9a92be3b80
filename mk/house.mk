# How large the product is, and how much of what matters the tests reach.

.PHONY: house coverage
house: $(ANY)  ## modules, median, largest, lines
	@$(PY) mk/house.py

# Folders, not names: a command of launch/ would import launch/crv.py for the package crv.
coverage: $(DEV)  ## branch coverage of objective, data and verify by their own tests (at least 95%)
	@$(PY) -m pytest -q -n 2 tests/objective tests/data tests/crv tests/training/test_equivalence.py --cov-branch \
	  $(foreach part,cogpo_jax/objective cogpo_jax/data crv/verify,--cov=$(CURDIR)/$(part)) \
	  --cov-report=term-missing:skip-covered --cov-fail-under=95
