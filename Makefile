# Real commands, a line or two each. `make setup` makes .venv/, which every other target uses.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
QUICK := book/_quick
CHROMIUM ?= chromium

.DEFAULT_GOAL := help
.PHONY: help setup book test test-fast lint check notebooks bench site serve clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile

setup: .venv/.ready ## make .venv with the exact versions that were tested together

.venv/.ready: pyproject.toml requirements/constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "crosscal needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c requirements/constraints.txt -e '.[dev]'
	@touch $@

book: setup ## fetch the data, run the quick study, build its pages (resumable)
	$(BIN)/python -m crosscal.assets
	$(BIN)/python -m crosscal_book.pages.generated --stage $(QUICK)
	$(BIN)/python -m crosscal_book.pages.notebooks --preset quick --into $(QUICK)/chapters
	$(BIN)/python -m crosscal_book.pages.generated --book $(QUICK)
	$(BIN)/jupyter-book build -q $(QUICK)
	@echo "The book is built: open $(CURDIR)/$(QUICK)/_build/html/index.html, or run: make serve"

test: setup ## run all tests, on all cores
	$(BIN)/python -m pytest -n auto --dist loadgroup

test-fast: setup ## run the tests that take no more than a minute or so: no slow ones, no pages, no browser
	$(BIN)/python -m pytest -q -n auto --dist loadgroup -m "not slow and not book and not browser"

lint: setup ## lint, format and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

check: lint ## lint, pairing, freshness, and a fresh build of the committed pages with warnings as errors
	$(BIN)/python -m crosscal_book.pages.freshness
	$(BIN)/jupyter-book build book/ -q -W -n --keep-going --all

notebooks: setup ## execute the chapters from the stored full runs and remake the generated pages
	$(BIN)/jupytext --sync notebooks/*.md
	$(BIN)/python -m crosscal_book.pages.notebooks --preset full -p compute never
	$(BIN)/python -m crosscal_book.pages.generated

bench: setup ## time and memory against a plain textbook implementation
	$(BIN)/python benchmarks/run.py

site: setup ## build the committed pages with a PDF of the whole book, for any web server: book/_build/html
	$(BIN)/jupyter-book build book/ -q --builder custom --custom-builder singlehtml && mkdir -p book/_extra
	$(CHROMIUM) --headless --no-sandbox --no-pdf-header-footer --virtual-time-budget=60000 \
		--print-to-pdf=book/_extra/crosscal.pdf file://$(CURDIR)/book/_build/singlehtml/index.html
	$(BIN)/jupyter-book build book/ -q -W -n --keep-going --all

serve: setup ## show the pages at http://localhost:8000, those of `make book` if there are any
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $$(ls -d $(QUICK)/_build/html book/_build/html 2>/dev/null | head -1)

clean: ## remove built pages and caches, but no results and no downloads
	rm -rf book/_build book/_extra $(QUICK) .pytest_cache .ruff_cache build
