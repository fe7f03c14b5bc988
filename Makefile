# SPDX-License-Identifier: MIT
# The first target that needs it makes .venv and builds the extension; both are kept up to date.
#
# A plain PyPI index offers torch with CUDA. For the small CPU build:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

PYTHON ?= python3
# Processes of pytest.
WORKERS ?= 2
# More arguments for the program that a target runs: make train ARGS="--steps 100 --loss giou"
ARGS ?=
# Who builds with make is a developer: a warning is an error.
export FASTLOSS_WERROR ?= 1

VENV := .venv
BIN := $(VENV)/bin
# CMake and Ninja may be there only.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"

REQUIREMENTS := $(VENV)/.requirements
EXTENSION := $(VENV)/.extension
CPP_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help venv build test train bench docs gpu gpu-memcheck lint format clean

help:
	@echo 'make test          lint, type check, all tests'
	@echo 'make train         train a detector with plain PyTorch and with fastloss   (ARGS=...)'
	@echo 'make bench         measure every loss against PyTorch and torch.compile     (ARGS=...)'
	@echo 'make docs          write the page of losses and its pictures'
	@echo 'make lint          ruff, clang-format and mypy, changing nothing'
	@echo 'make format        ruff and clang-format, in place'
	@echo 'make build         only .venv and the extension'
	@echo 'make gpu           on a GPU machine, without network: build, GPU tests, benchmarks'
	@echo 'make gpu-memcheck  the GPU tests of degenerate input under compute-sanitizer'
	@echo 'make clean         remove what was built, but for .venv'

venv: $(REQUIREMENTS)
build: $(EXTENSION)

$(REQUIREMENTS): requirements-dev.txt requirements-peers.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, PYTHON=$(PYTHON) is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $$(grep '^torch==' $<)
	$(BIN)/pip install -r $<
	$(BIN)/pip install --no-deps -r requirements-peers.txt
	@touch $@

$(EXTENSION): $(REQUIREMENTS) setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	$(IN_VENV) $(BIN)/pip install --no-build-isolation --no-deps -e .
	@touch $@

test: lint $(EXTENSION)
	$(IN_VENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

train: $(EXTENSION)
	$(BIN)/python examples/train_detector.py $(ARGS)

bench: $(EXTENSION)
	$(BIN)/python -m benchmarks.run $(ARGS)

docs: $(EXTENSION)
	$(BIN)/python -m docs

lint: $(REQUIREMENTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/mypy

format: $(REQUIREMENTS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# Needs no network and no .venv: PYTHON has torch with CUDA, numpy, pytest, hypothesis, rich, CMake,
# Ninja and setuptools. Built in place, and only for the GPU that is there.
gpu: gpu-build
	$(PYTHON) -m pytest -m gpu $(ARGS)
	mkdir -p benchmarks/results
	$(PYTHON) -m benchmarks.run --device cuda --json "benchmarks/results/$(GPU_NAME).json"

gpu-memcheck: gpu-build
	compute-sanitizer --error-exitcode 1 $(PYTHON) -m pytest -m gpu tests/test_degenerate.py

.PHONY: gpu-build
gpu-build:
	FASTLOSS_CUDA=1 TORCH_CUDA_ARCH_LIST=$(GPU_ARCHITECTURE) $(PYTHON) setup.py -q egg_info build_ext --inplace

GPU_NAME = $(shell $(PYTHON) -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')
GPU_ARCHITECTURE = $(shell $(PYTHON) -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')

clean:
	rm -rf build dist output *.egg-info fastloss/_C*.so $(EXTENSION) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -exec rm -rf {} +
