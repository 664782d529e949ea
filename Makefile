# Everything is made into .venv; a fresh machine needs Python 3.11+, make and git.
#
# torch comes first and alone, so that no other package's requirement decides which build arrives.
# Where PyPI would give a CUDA build, name an index of CPU wheels:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
PIP_FLAGS := --disable-pip-version-check --quiet

venv := .venv
bin := $(venv)/bin
torch_index_flag := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: help demo test lint generate bench clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(bin)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "DIPPM needs Python 3.11 or newer; name one with make PYTHON=python3.11")'
	$(PYTHON) -m venv $(venv)

$(venv)/.torch: constraints.txt | $(bin)/python
	$(bin)/python -m pip install $(PIP_FLAGS) $(torch_index_flag) torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	@touch $@

$(venv)/.runtime: pyproject.toml constraints.txt | $(venv)/.torch
	$(bin)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable .
	@touch $@

$(venv)/.dev: pyproject.toml constraints.txt | $(venv)/.torch
	$(bin)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(venv)/.runtime

demo: $(venv)/.runtime  ## the main job, no cluster needed: a model file and a manifest in, prediction and sized pod out
	@echo '$$ dippm predict examples/models/resnet50.onnx --batch 32 --device A100'
	@$(bin)/dippm predict examples/models/resnet50.onnx --batch 32 --device A100
	@echo
	@echo '$$ dippm size -f examples/resnet50.yaml'
	@$(bin)/dippm size -f examples/resnet50.yaml

test: $(venv)/.dev  ## the test suite
	$(bin)/python -m pytest

lint: $(venv)/.dev  ## formatting, lint, types and layers
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	MYPYPATH=predictor:operator $(bin)/mypy
	$(bin)/lint-imports

generate: $(venv)/.dev  ## regenerate the CRD, its copy in the chart, the values schema, docs/reference and what README quotes
	$(bin)/python -m dippm_operator.resource.crd > crds/inferencejobs.dippm.dev.yaml
	$(bin)/python charts/generate.py
	$(bin)/python docs/generate.py
	$(bin)/python docs/quotes.py

bench: $(venv)/.dev  ## the figures that README quotes
	$(bin)/python bench/predict.py
	$(bin)/python bench/admission.py

clean:  ## remove the environment and caches
	rm -rf $(venv) build dist .pytest_cache .mypy_cache .ruff_cache
