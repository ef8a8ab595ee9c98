# `make demo` and `make test` need only Python 3.11 or newer; each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
CODE := src tests benchmarks examples docs

.PHONY: setup demo test slow check docs docs-serve faults bench clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "exitwise needs Python 3.11 or newer; got " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/exitwise demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

check: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports --no-cache

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: setup
	$(BIN)/mkdocs serve

# EXITWISE_FAULTS=short injects fewer of each.
faults: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m faults tests/faults

# Every benchmark that takes minutes; on a machine that does nothing else.
bench: setup
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache site
