# One command each: `make run` tells a story, `make test` runs the tests. Both do their own set-up in
# .venv: Python >= 3.11 with headers, C and C++ compilers and make are all they need.
#
#   PYTHON=python3.12   the interpreter to use; otherwise the newest suitable one
#   PROMPT="..."        what `make run` starts from

PROMPT ?= Once upon a time
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
CANDIDATES := $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3 python)

# A Python that is new enough and can build extensions; some names are mere shims that fail.
SUITABLE := import os, sys, sysconfig; sys.exit(sys.version_info < (3, 11) or not \
	os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")))

NATIVE := setup.py $(shell find src -name '*.[ch]' -o -name '*.inc' -o -name '*.pyx' \
	-o -name '*.px[di]' -o -name '*.cpp')
NATIVE := $(filter-out src/rllama/_kernels/core.c,$(NATIVE))
C_FILES := $(shell find src benchmarks tests/native -name '*.[ch]' -o -name '*.inc' -o -name '*.cpp')
C_FILES := $(filter-out src/rllama/_kernels/core.c,$(C_FILES))

# Few workers, as tests have threads; one that has nothing left takes tests from the end of another's.
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

.PHONY: run test test-long lint format bench tools build python clean
.DELETE_ON_ERROR:

run: $(VENV)/.built
	@$(BIN)/rllama --prompt "$(PROMPT)"

test: $(VENV)/.tools $(VENV)/.built
	@$(PYTEST) -m "not slow"

test-long: $(VENV)/.tools $(VENV)/.built
	@$(PYTEST)

# All checks run, so that one look shows everything; any of them fails the target.
lint: $(VENV)/.tools
	@failed=; \
	$(BIN)/ruff check --quiet . || failed="$$failed ruff-check"; \
	$(BIN)/ruff format --quiet --check . || failed="$$failed ruff-format"; \
	$(BIN)/mypy || failed="$$failed mypy"; \
	$(BIN)/clang-format --dry-run -Werror $(C_FILES) || failed="$$failed clang-format"; \
	if [ -n "$$failed" ]; then echo "lint: failed:$$failed" >&2; exit 1; fi; \
	echo "lint: all clean"

format: $(VENV)/.tools
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(C_FILES)

bench: $(VENV)/.built
	@$(BIN)/python benchmarks/bench_bandwidth.py
	@$(BIN)/python benchmarks/bench_overhead.py
	@$(BIN)/python benchmarks/bench_matmul.py

tools: $(VENV)/.tools
build: $(VENV)/.built

# The interpreter that set-up would take.
python:
	@$(find_python); command -v $$python

find_python = python=; for name in $(CANDIDATES); do \
		if $$name -c '$(SUITABLE)' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "make: no Python >= 3.11 with headers among: $(CANDIDATES)." \
			"Install one (on Debian: python3-dev and python3-venv) or set PYTHON=." >&2; \
		exit 1; \
	fi

# Two ways to an environment with pip: the interpreter's own, or a pip that it has outside.
$(VENV)/.python:
	@echo "Setting up in $(VENV): fetching packages, then compiling kernels; about a minute" >&2
	@$(find_python); \
	if $$python -c 'import ensurepip' 2>/dev/null; then \
		$$python -m venv --clear $(VENV); \
	elif $$python -m pip --version >/dev/null 2>&1; then \
		$$python -m venv --clear --without-pip $(VENV) && \
		$$python -m pip -qq --disable-pip-version-check --python $(BIN)/python install pip; \
	else \
		echo "make: $$python has neither ensurepip nor pip." \
			"Install one of them (on Debian: python3-venv) or set PYTHON=." >&2; \
		exit 1; \
	fi
	@touch $@

# What the build and the package need, so that the build itself runs once and without isolation.
$(VENV)/.needs: pyproject.toml $(VENV)/.python
	@$(call requirements,p["build-system"]["requires"] + p["project"]["dependencies"])
	@touch $@

$(VENV)/.tools: pyproject.toml $(VENV)/.needs
	@$(call requirements,p["project"]["optional-dependencies"]["test"])
	@touch $@

$(VENV)/.built: $(NATIVE) $(VENV)/.needs
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

requirements = $(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	print(*($(1)), sep="\n")' > $(VENV)/requirements.txt && \
	$(PIP) --quiet install --requirement $(VENV)/requirements.txt

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src -name '*.so' -delete
	rm -f src/rllama/_kernels/core.c
