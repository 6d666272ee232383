# What a user and CI type. Needs GNU make and a Python from 3.10 to 3.13.

PYTHON ?= python3
VENV ?= .venv
# Added to every pip call: for example the index that PyTorch's installation page names for CPU builds.
PIP_FLAGS ?=
# Added to pytest: for example `make test PYTEST_FLAGS="-m slow"`.
# A file stays on one worker: its networks, kits and browser are made once.
PYTEST_FLAGS ?= -n auto --dist loadfile

BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.edgeattn-run
DEV_STAMP := $(VENV)/.edgeattn-dev

.DEFAULT_GOAL := help
.PHONY: help install dev quickstart test lint format readme schema clean

help:
	@echo "make quickstart   install into $(VENV) and run recipes/quickstart.yaml: train, quantize, prove"
	@echo "make install      install everything that builds engines without a GPU"
	@echo "make dev          the same plus the tools of the two checks below"
	@echo "make test         the tests (PYTEST_FLAGS='-m slow' for the long ones)"
	@echo "make lint         ruff and mypy"
	@echo "make readme       bring the generated parts of README.md up to date"
	@echo "make schema       bring the generated JSON schemas up to date"
	@echo "make clean        remove what these commands made, except $(VENV) and runs"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call quick: pip runs again only after the pins or the metadata changed.
$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[all]'
	touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@ $(RUN_STAMP)

install: $(RUN_STAMP)

dev: $(DEV_STAMP)

quickstart: $(RUN_STAMP)
	$(BIN)/edgeattn run recipes/quickstart.yaml --out runs/quickstart

test: $(DEV_STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy deploy/python/edgeattn_classify.py

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: $(RUN_STAMP)
	$(BIN)/edgeattn readme

schema: $(RUN_STAMP)
	$(BIN)/python -m edgeattn.recipe > recipes/recipe.schema.json.part
	mv recipes/recipe.schema.json.part recipes/recipe.schema.json
	$(BIN)/python -m edgeattn.report > recipes/report.schema.json.part
	mv recipes/report.schema.json.part recipes/report.schema.json
	$(BIN)/python -m edgeattn.kit.spec > deploy/model.schema.json.part
	mv deploy/model.schema.json.part deploy/model.schema.json

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find edgeattn tests -name __pycache__ -type d -prune -exec rm -rf {} +
