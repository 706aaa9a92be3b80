# Renews the pinned requirement files from pyproject.toml: each set is installed into a scratch environment and listed.
.PHONY: pins

pins:  ## renew requirements/light.txt and requirements/dev.txt (downloads everything)
	@for set in light:train dev:dev; do \
	  rm -rf .venv-pins && "$$(mk/python.sh)" -m venv .venv-pins && \
	  .venv-pins/bin/python -m pip install --quiet ".[$${set#*:}]" && \
	  .venv-pins/bin/python -m pip freeze --exclude cogpo-jax | grep '==' | sed 's/+cpu$$//' > requirements/$${set%:*}.txt || exit 1; \
	done; rm -rf .venv-pins
