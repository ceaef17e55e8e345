# `make demo` and `make test` are all that a newcomer needs. Both rest on `make install`.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
PYTEST_ARGS ?=
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Nothing here calls home, and Flower installs nothing behind our back.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install demo test lint reference lock clean

help:  ## what can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16

demo: install  ## three hospitals train one sampler together (minutes; writes runs/demo)
	$(BIN)/ghostnet demo --out $(RUN)

test: lint  ## every check and every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: install  ## ruff, mypy and the walls between the packages
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

reference: install  ## docs/reference.md and docs/schemas, from the fields that the keys are read into
	$(BIN)/python -m ghostnet.cli.reference docs

install: $(VENV)/.installed  ## the environment in .venv; at once when nothing has changed

# Python 3.11 or 3.12, `python3` before others; without either, a newer python3. PYTHON=... overrules.
# Where Debian's python3-venv is missing, pip itself fills the environment.
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
  $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
    && echo $$python && exit; done; echo python3)

# An environment keeps the Python that it was made with: asked for another one, say so instead of testing the wrong one.
ifeq ($(origin PYTHON),command line)
ifneq ($(wildcard $(VENV)/.created),)
version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifneq ($(call version,$(PYTHON)),$(call version,$(BIN)/python))
$(error $(VENV) holds Python $(call version,$(BIN)/python), not $(PYTHON); name another folder, VENV=.venv-other, or `make clean` first)
endif
endif
endif

$(VENV)/.created:
	@rm -rf $(VENV)
	@python='$(PYTHON)'; $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$$python does not run here as Python >= 3.11; install Python 3.11 or 3.12, or: make PYTHON=/path/to/it" >&2; exit 1; }; \
	echo "creating $(VENV) with $$($$python --version), $$(command -v $$python) (tested: 3.11 and 3.12)"; \
	$$python -m venv $(VENV) >/dev/null 2>&1 \
	  || { rm -rf $(VENV); $$python -m venv --without-pip $(VENV); $$python -m pip -q --python $(BIN)/python install pip; }
	@touch $@

$(VENV)/.torch: $(VENV)/.created constraints.txt deploy/install_torch.py
	$(BIN)/python deploy/install_torch.py
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[all,test,dev]'
	$(PIP) install -q --no-deps --ignore-requires-python rapidocr==3.8.4
	@touch $@

lock: install  ## pins every version anew in constraints.txt
	{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-header --no-annotate -q \
	    --constraint <(grep '^torch==' constraints.txt) | grep -vE '^(nvidia-|cuda-|triton)'; } > constraints.new
	mv constraints.new constraints.txt

clean:  ## removes the environment and caches; never runs/, which holds hospitals' ledgers
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage* htmlcov *.egg-info *.fab
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './runs/*' -prune -exec rm -rf {} +
