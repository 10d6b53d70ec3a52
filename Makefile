# Every target first makes its environment ready (setup.sh): the active virtual or conda environment, or else a .venv
# here. Conda's base environment serves other work too and is left alone.
SIZE ?= quick
ENV := $(or $(VIRTUAL_ENV),$(if $(filter base,$(CONDA_DEFAULT_ENV)),,$(CONDA_PREFIX)),.venv)
PYTHON = "$(ENV)/bin/python"
NOTEBOOKS = $(wildcard notebooks/*.ipynb)
# no times and no editor's marks, so that a notebook's diff shows only what changed
CLEAN = --log-level=WARN --ExecutePreprocessor.record_timing=False --ClearMetadataPreprocessor.enabled=True \
	--ClearMetadataPreprocessor.preserve_cell_metadata_mask=tags \
	--ClearMetadataPreprocessor.preserve_nb_metadata_mask=kernelspec

.DEFAULT_GOAL := help
.PHONY: help setup study report test lab notebooks bench

help: ## this list
	@echo "Each of these sets itself up first, where that is needed:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## only the environment: the active one, or a .venv here
	@sh setup.sh "$(ENV)"

study: setup ## the study: a table of perplexities; SIZE=quick (5 minutes) or SIZE=laptop (24, with intervals)
	@$(PYTHON) -m rtl_core study --size $(SIZE)

report: setup ## results/README.md and the table in README.md, anew from the committed records
	@$(PYTHON) -m rtl_core report --write

test: setup ## all tests and notebooks, offline
	@$(PYTHON) -m pytest -q --nbmake -n 2

lab: setup ## JupyterLab on the notebooks
	@$(PYTHON) -m jupyterlab notebooks

notebooks: setup ## run all notebooks in fresh kernels and keep their outputs
	@RTL_SIZE=quick $(PYTHON) -m jupyter nbconvert --to notebook --execute --inplace $(CLEAN) $(NOTEBOOKS)

bench: setup ## speed and memory as ratios in one run; writes benchmarks/results.json
	@$(PYTHON) -m benchmarks
