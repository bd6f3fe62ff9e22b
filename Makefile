# `make` lists the targets. Each does its own set-up; the second time that is a look at one stamp file.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo bench test fuzz check format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install plait with everything it is developed with

# An installed torch whose version fits is used; then its pin does not apply.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	fits='import re, torch; v = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])); raise SystemExit(not (2, 9) <= v < (3, 0))'; \
	if [ ! -x $(BIN)/python ]; then \
	  if $(PYTHON) -c "$$fits" 2>/dev/null; then site=--system-site-packages; echo "using the installed torch"; else site=; fi; \
	  $(PYTHON) -m venv $$site $(VENV); \
	fi; \
	if grep -q 'system-site-packages = true' $(VENV)/pyvenv.cfg && $(BIN)/python -c "$$fits" 2>/dev/null; then \
	  grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt; \
	else \
	  cp constraints.txt $(VENV)/constraints.txt; \
	  $(BIN)/python -m pip install --disable-pip-version-check -c $(VENV)/constraints.txt "$$(grep '^torch==' constraints.txt)"; \
	fi; \
	$(BIN)/python -m pip install --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[train,dev]'; \
	touch $@

# One thread: the graph is small, and threads that wait for each other make it crawl on a machine that is busy.
demo: $(STAMP) ## train on an embedded data set, with plait and without, side by side
	$(BIN)/plait train --compare --epochs 100 --threads 1 --out runs/demo

bench: $(STAMP) ## time layers against eager, Inductor and torch.sparse on a generated graph (some minutes)
	$(BIN)/plait bench --quick --json results/bench.json --png results/bench.png

test: $(STAMP) ## run the tests, doctests included
	$(BIN)/python -m pytest -n 2 --dist worksteal

FUZZ_MINUTES ?= 10

fuzz: $(STAMP) ## random layers, compiled and not, for FUZZ_MINUTES (10); what is wrong is printed as a layer
	$(BIN)/python -m tests.fuzz --minutes $(FUZZ_MINUTES)

check: $(STAMP) ## what CI runs: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory test

format: $(STAMP) ## put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what can be made again, .venv included
	rm -rf $(VENV) build dist runs results .pytest_cache .mypy_cache .ruff_cache .hypothesis
