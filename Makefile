# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0

VENV := .venv
PYTHON := $(VENV)/bin/python
# Made last, so that it stands for a whole installation; without it .venv is made anew.
INSTALLED := $(VENV)/installed
ARGS ?=
MODALITY ?= xray
# A modality other than the configurations' own is a small file behind them.
PLAN := $(if $(filter xray,$(MODALITY)),configs/plan.json,"['configs/plan.json','configs/$(MODALITY).json']")

.DEFAULT_GOAL := help
.PHONY: help generate test integration benchmark benchmark_training lint format lock clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z_]+:.*## / {printf "  make %-19s%s\n", $$1, $$2}' Makefile
	@echo
	@echo '  ARGS="--n_images 16 --seed 7" goes on to generate, ARGS="-k walk" to the tests of make test.'

generate: $(INSTALLED)  ## Write a synthetic cohort from the shipped weights: X-rays, or MODALITY=fundus
	@test $(MODALITY) = xray || test -e configs/$(MODALITY).json || \
	  { echo "There is no configs/$(MODALITY).json. MODALITY is xray, fundus, or a file of yours there." >&2; exit 2; }
	@$(PYTHON) -m monai.bundle run generate --config_file $(PLAN) $(ARGS)

# One process for each core, each with one thread: threads that share cores wait for each other. Tests of one file run
# in one process, because they share what takes minutes to make.
test: lint  ## Check format, lint and types, then run the tests
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

# What each needs is in docs/integrations.md and docs/release.md.
integration: $(INSTALLED)  ## Run the tests against other programs (Orthanc, Chromium), where these are installed
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m integration -rs $(ARGS)

lint: $(INSTALLED)  ## Check format, lint, the order of stages and types
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m ruff check
	$(VENV)/bin/lint-imports --no-cache
	$(PYTHON) -m mypy

format: $(INSTALLED)  ## Format the code and mend what lint can mend
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

benchmark: $(INSTALLED)  ## Print what a released image costs by three walks, and what it is worth
	@$(PYTHON) -m scripts.tools.benchmark $(ARGS)

benchmark_training: $(INSTALLED)  ## Print the table of training speeds
	@$(PYTHON) -m scripts.tools.benchmark_training $(ARGS)

lock:  ## Write requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --quiet --extra pacs --extra test --universal --python-version 3.11 --no-emit-index-url \
	  --custom-compile-command "make lock" --output-file requirements.lock $(ARGS)

clean:  ## Remove .venv and caches; what is in output/ stays
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock
	@set -e; \
	if [ -e $(INSTALLED) ]; then rm $(INSTALLED); else \
	  for candidate in python3.12 python3.11 python3 python; do \
	    if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	      >/dev/null 2>&1; then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'No Python 3.11 or 3.12 with the modules venv and ensurepip is on the PATH. Install one (on Debian and' \
	      'Ubuntu: apt install python3.12-venv; anywhere: python.org) and run the same command again.' >&2; exit 1; \
	  fi; \
	  echo "Installing the packages of requirements.lock into $(VENV) with $$($$found --version)"; \
	  $$found -m venv --clear $(VENV); \
	fi; \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --requirement requirements.lock; \
	touch $(INSTALLED)
