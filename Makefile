# The first target that needs the virtual environment, .venv, creates it.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo demo-ablation test test-slow lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: pyproject.toml constraints.txt
	@echo "installing dnas and its dependencies into .venv (torch is large: this takes some minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@echo "compiling the installed modules on all cores (pip would use one)"
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # some packages have templates that are not valid Python
	@touch $@

demo: .venv/installed ## search 20 networks on handwritten digits, and write the report
	$(BIN)/dnas search --space digits_bc --trials 20
	$(BIN)/dnas report digits_bc

demo-ablation: .venv/installed ## run an ablation on handwritten digits (4 variants, 7 seeds), and write the report
	$(BIN)/dnas ablate digits_connectivity
	$(BIN)/dnas report digits_connectivity

# Store compiled modules, or each of the many processes that the tests start compiles dnas again.
unexport PYTHONDONTWRITEBYTECODE

# More options for pytest: make test PYTEST_OPTIONS="--durations=40 -k replay"
PYTEST_OPTIONS ?=
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

test: .venv/installed ## run all tests but the slow ones
	$(PYTEST) -m "not slow" $(PYTEST_OPTIONS)

test-slow: .venv/installed ## run the slow tests: sanitizers, emulators, real clusters, whole studies, repeated kills
	$(PYTEST) -m slow $(PYTEST_OPTIONS)

lint: .venv/installed ## run ruff and mypy, and check the English of the prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_prose.py

bench: .venv/installed ## run the benchmarks that need no data; see benchmarks/README.md
	$(BIN)/python benchmarks/bench_cost.py
	$(BIN)/python benchmarks/bench_dense_block.py

clean: ## remove .venv and caches; keep studies and reports
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
