# Every target first makes its environment ready (setup.sh): the active virtual or conda environment, or else a .venv
# here. Conda's base environment serves other work too and is left alone.
SIZE ?= quick
ENV := $(or $(VIRTUAL_ENV),$(if $(filter base,$(CONDA_DEFAULT_ENV)),,$(CONDA_PREFIX)),.venv)
PYTHON = "$(ENV)/bin/python"
.DEFAULT_GOAL := help
.PHONY: help setup study report test lab notebooks figures site blank bench

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

notebooks: setup ## run all notebooks in fresh kernels, keep their outputs and what each cost
	@RTL_SIZE=quick $(PYTHON) -m course notebooks

figures: setup ## every figure of the study as SVG, PDF and PNG, described in figures/README.md
	@$(PYTHON) -m course figures

site: setup ## all pages and notebooks as HTML in site/, searchable, without network
	@$(PYTHON) -m course site

blank: setup ## copies of the notebooks for students in blank/: no outputs, no solutions
	@$(PYTHON) -m course blank

bench: setup ## speed and memory as ratios in one run; writes benchmarks/results.json
	@$(PYTHON) -m benchmarks
