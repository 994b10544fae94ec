# Everything a fresh machine needs: Python 3.11 or 3.12, make and a package index. All is installed in this folder; HOME gets caches (pip, uv, matplotlib, fetched weights) and Prefect's history.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
SHELL := bash
UV := .uv/bin/uv
READY := .venv/ready
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: setup demo test test-pipeline test-rest lint types lock clean

setup: $(READY)

$(UV):
	@test -n "$(PYTHON)" || { echo "dvmset needs Python 3.11 or 3.12 on PATH (or PYTHON=/path/to/python make ...)"; exit 1; }
	@$(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv

$(READY): requirements.lock pyproject.toml | $(UV)
	@echo "setting up .venv (about 7 GB: torch, audiocraft, prefect, ...)"
	@test -x .venv/bin/python || $(UV) venv --quiet --python $(PYTHON) .venv
	@$(UV) pip sync --quiet --require-hashes --python .venv requirements.lock
	@$(UV) pip install --quiet --no-deps --python .venv -e .
	@touch $@

demo: $(READY)
	@.venv/bin/python -m tests.demo

# Two processes, since most tests keep one core busy; each line says whose it is.
test: lint types
	@$(MAKE) --no-print-directory --jobs=2 test-pipeline test-rest

test-pipeline: OF = tests/pipeline tests/truth
test-rest: OF = --ignore=tests/pipeline --ignore=tests/truth
test-pipeline test-rest: $(READY)
	@set -o pipefail; .venv/bin/python -u -m pytest $(OF) 2>&1 | sed -u 's/^/$(@:test-%=%) | /'

lint: $(READY)
	@.venv/bin/ruff check .

types: $(READY)
	@.venv/bin/mypy

lock: | $(UV)
	$(UV) pip compile --quiet pyproject.toml --all-extras --group audiocraft --group dev --universal --generate-hashes --python-version 3.11 -o requirements.lock

clean:
	rm -rf .venv .uv .demo
