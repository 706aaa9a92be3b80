# The documentation as a site, in an environment of its own; the code is read for it, not imported.

DOCS_VENV := .venv-docs
DOCS := $(DOCS_VENV)/.stamp

.PHONY: docs
docs: $(DOCS)  ## the documentation as a site, in site/ (strict: a broken link fails)
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --quiet --clean && echo "site/index.html: $$(find site -name '*.html' | wc -l) pages"

$(DOCS_VENV)/bin/pip:
	@python=$$(mk/python.sh) && echo "making $(DOCS_VENV) with $$python" && "$$python" -m venv $(DOCS_VENV)

$(DOCS): requirements/docs.txt | $(DOCS_VENV)/bin/pip
	@echo "installing $<"
	@$(DOCS_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r $< && touch $@
