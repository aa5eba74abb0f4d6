# Each target makes its own .venv and installs what it needs, once.
#   make demo | test | lint | doctest | docs | test-oldest | coverage | cases | mutants | bench | clean
# Another interpreter: make PYTHON=python3.13 test
# Another torch:       make clean, then make CONSTRAINTS=/dev/null test, or a file of your own

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV ?= .venv

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: demo test lint doctest docs test-oldest coverage cases mutants bench clean
.NOTPARALLEL: # two pips must not write to one .venv

demo: $(VENV)/.with-plot,progress
	$(BIN)/python docs/examples/plot_quickstart.py

# The slowest tests are left out, except where the variable CI is set, as it is in CI.
CHOSEN := $(if $(CI),,-m "not slow")

# A process for each core, of one thread: tests that need more threads say so themselves.
test: $(VENV)/.with-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(CHOSEN) $(ARGS)

lint: $(VENV)/.with-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

doctest: $(VENV)/.with-test
	$(BIN)/python -m pytest --doctest-modules skvae

# Warnings are errors. Sphinx needs no network, nor do the pages.
docs: $(VENV)/.with-docs
	$(BIN)/python -m sphinx -b html -E -W --keep-going docs docs/_build/html $(ARGS)
	$(BIN)/python docs/check_links.py docs/_build/html

# The lowest versions that pyproject.toml declares. ARGS="tests/test_vae.py": a part of the suite.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt ARGS="$(ARGS)"

coverage: $(VENV)/.with-test,coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term-missing:skip-covered

cases: $(VENV)/.with-test
	$(BIN)/python docs/count_cases.py

mutants: $(VENV)/.with-test,mutants
	PATH="$(BIN):$$PATH" python tests/mutants.py --workers 2 --json mutants.json

bench: $(VENV)/.with-bench
	$(BIN)/python benchmarks/bench_fit.py
	$(BIN)/python benchmarks/bench_search.py

clean:
	rm -rf $(VENV) .venv-oldest build dist docs/_build docs/api docs/auto_examples docs/sg_execution_times.rst .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first, by itself: its pin decides what the rest resolves to.
$(VENV)/.torch: $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	@touch $@

# The stem is a list of extras: .with-plot,progress
$(VENV)/.with-%: $(VENV)/.torch pyproject.toml
	$(INSTALL) --editable ".[$*]"
	@touch $@
