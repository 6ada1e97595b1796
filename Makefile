PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench lock clean

demo: $(STAMP)
	$(BIN)/heteroplace solve instances/quickstart.json

test: $(STAMP)
	$(BIN)/python -m pytest -n auto

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Half a minute; `make bench SUITE=release` takes half an hour, and FLAGS=--resume continues it.
SUITE ?= quick
FLAGS ?=
bench: $(STAMP)
	@mkdir -p out
	$(BIN)/heteroplace bench benchmarks/$(SUITE).toml --out out/bench-$(SUITE).json $(FLAGS)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

# Writes the lock file anew from the lower bounds in pyproject.toml.
lock:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --python-version 3.11 --all-extras --group dev \
	  pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache
