# make demo: the whole path on real files.  make test: the tests.  Both set everything up first, and repeat safely.

PYTHON    ?= python3
WORKSPACE ?= workspace
SOURCES   ?=
TRAIN_OPTIONS ?=
VENV      := .venv
BIN       := $(VENV)/bin
READY     := $(VENV)/.ready

.PHONY: help setup demo test test-slow bench lint format package clean

help:       ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

setup: $(READY)  ## .venv with the pinned dependencies, and a Java runtime
	@infra/java.sh
	@PATH="$(abspath $(BIN)):$$PATH" infra/spark/archive.sh $(VENV)/spark.jsa

$(READY): constraints.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12"; exit 1; }
	@echo "setup: installing into $(VENV); some minutes and about 2 GB the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[spark,train,dev]'
	@touch $(READY)

demo: setup  ## raw files to a model that completes code; SOURCES= and WORKSPACE= name your own
	@PATH="$(abspath $(BIN)):$$PATH" TRAIN_OPTIONS="$(TRAIN_OPTIONS)" infra/demo.sh "$(WORKSPACE)" $(SOURCES)

test: setup  ## the tests
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup  ## the tests that take minutes
	@infra/libaio.sh
	$(BIN)/python -m pytest -m slow

bench: setup  ## speed and accuracy of near-duplicate removal, beside other tools; takes an hour and 10 GB
	$(BIN)/python tests/benchmarks/run.py

lint: setup  ## ruff, mypy, the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## ruff format
	$(BIN)/ruff format .

package: setup  ## dist/corella.zip for spark-submit --py-files
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	mv dist/corella-*.whl dist/corella.zip

clean:      ## remove what was built; the workspace stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
