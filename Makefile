# Two commands from a bare clone: `make demo` and `make test`.  Both make .venv and install the package first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format docs clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/maskedclip demo --out demo

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site demo .pytest_cache .ruff_cache .hypothesis
