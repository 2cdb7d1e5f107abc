# One virtual environment, .venv, made by the first target that needs it.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo demo-ablation test test-slow lint bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: pyproject.toml constraints.txt
	@echo "installing dnas and what it needs into .venv (torch is large: some minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/installed ## a real search on handwritten digits, and its report
	$(BIN)/dnas search --space digits_bc --trials 20
	$(BIN)/dnas report digits_bc

demo-ablation: .venv/installed ## a real ablation on handwritten digits: 4 variants, 7 seeds, and its report
	$(BIN)/dnas ablate digits_bottleneck_compression
	$(BIN)/dnas report digits_bottleneck_compression

# More options for pytest: make test PYTEST_OPTIONS="--durations=40 -k replay"
PYTEST_OPTIONS ?=
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

test: .venv/installed ## all tests but the slow ones: 5 minutes on 2 cores
	$(PYTEST) -m "not slow" $(PYTEST_OPTIONS)

test-slow: .venv/installed ## the slow tests: sanitizers, emulators, real clusters, repeated kills
	$(PYTEST) -m slow $(PYTEST_OPTIONS)

lint: .venv/installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed ## what runs without data of its own; see benchmarks/README.md
	$(BIN)/python benchmarks/bench_cost.py
	$(BIN)/python benchmarks/bench_dense_block.py

clean: ## remove .venv and caches; studies and reports stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
