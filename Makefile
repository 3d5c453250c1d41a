# Every target creates what it needs: a virtual environment with the pinned packages in .venv.
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
CONFIG ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := src scripts tests benchmarks workflow examples $(wildcard docs/*.py)

.PHONY: help install run models test test-dvc test-slurm test-browser lint format bench gpu-check record verify stress pages docs clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.run  ## Create .venv with the pinned packages of the workflow

run: $(VENV)/.run  ## Build everything of config.yaml: data, activations, bases, probes, report (CONFIG=path for another)
	@$(BIN)/python scripts/unlock.py $(if $(CONFIG),--configfile $(CONFIG))
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores $(CORES) --rerun-incomplete all $(if $(CONFIG),--configfile $(CONFIG))
	@$(BIN)/python scripts/where.py $(CONFIG)

models: $(VENV)/.models  ## Install what pretrained networks need (docs/howto/real-data.md)

test: $(VENV)/.dev  ## Run all tests
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

test-dvc: $(VENV)/.dev $(VENV)/.dvc  ## Run the tests that need DVC and an S3 server (both installed here)
	@PATH="$(CURDIR)/$(BIN):$$PATH" EIGENLOOM_REQUIRE_DVC=1 $(BIN)/python -m pytest -n $(CORES) --dist loadfile -m "dvc or s3"

test-slurm: $(VENV)/.dev  ## Run the tests that need Slurm, on a cluster of their own (root; docs/howto/slurm.md)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/slurm

test-browser: $(VENV)/.dev  ## Run the tests that need Chromium
	@PATH="$(CURDIR)/$(BIN):$$PATH" EIGENLOOM_REQUIRE_BROWSER=1 $(BIN)/python -m pytest -m browser tests/report

lint: $(VENV)/.dev  ## Check style, types, floors, workflow
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/snakefmt --check Snakefile workflow
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --lint

format: $(VENV)/.dev  ## Rewrite the code in the house style
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/snakefmt Snakefile workflow

bench: $(VENV)/.bench  ## Time eigenloom beside its peers (FULL=1 for the documented shapes)
	@cd benchmarks && OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	  ../$(BIN)/python run.py $(if $(FULL),--full) $(NAMES)
	@$(BIN)/python docs/generate.py

gpu-check: $(VENV)/.dev  ## Measure the GPU paths beside the device's limits; prints a table, writes benchmarks/results/gpu.json
	@cd benchmarks && ../$(BIN)/python gpu_check.py

record: $(VENV)/.dvc  ## Record artifacts with DVC and stage results and records for Git, running nothing (CONFIG=path for another)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/keep.py $(if $(CONFIG),--config $(CONFIG)) $(STAGES)

verify: $(VENV)/.run  ## Compare every artifact with its recorded sha256
	@$(BIN)/python scripts/verify.py

stress: $(VENV)/.dev  ## Kill the workflow 100 times at random moments and compare the artifacts with an undisturbed run
	@PATH="$(CURDIR)/$(BIN):$$PATH" EIGENLOOM_KILLS=100 $(BIN)/python -m pytest tests/workflow/test_tiny.py -k killed

pages: $(VENV)/.dev  ## Regenerate the generated pages of docs/ and the tables of README.md
	@$(BIN)/python docs/generate.py

docs: pages $(VENV)/.docs  ## Build the documentation into site/ (any warning fails), generated pages first
	@# Not --quiet, which would hide warnings from --strict.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "documentation: $(CURDIR)/site/index.html"

clean:  ## Remove the virtual environment and caches; artifacts and results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build site src/*.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "the venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.run: constraints.txt pyproject.toml | $(BIN)/python
	@echo "installing the pinned packages into $(VENV) ..."
	@$(PIP) --editable '.[workflow]'
	@touch $@

$(VENV)/.dev: constraints.txt pyproject.toml | $(BIN)/python
	@echo "installing the pinned packages and the development tools into $(VENV) ..."
	@$(PIP) --editable '.[workflow,dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.dvc: constraints.txt pyproject.toml | $(BIN)/python
	@echo "installing DVC into $(VENV) ..."
	@$(PIP) --editable '.[workflow,dvc,s3]'
	@touch $@ $(VENV)/.run

$(VENV)/.models: constraints.txt pyproject.toml | $(BIN)/python
	@echo "installing transformers into $(VENV) ..."
	@$(PIP) --editable '.[workflow,models]'
	@touch $@ $(VENV)/.run

$(VENV)/.bench: $(VENV)/.dev
	@$(PIP) --editable '.[workflow,dev,bench]'
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	@echo "installing MkDocs into $(VENV) ..."
	@$(PIP) --editable '.[workflow,dev,docs]'
	@touch $@
