# `make demo` and `make test` need python3 (3.10 or newer) and make; everything else they install into $(VENV).
# Variables: PYTHON (the interpreter), VENV (the environment), TORCH (what pip installs as torch where it is missing),
# WORKERS (processes of `make test`).

PYTHON ?= python3
VENV ?= .venv
# The default build of torch on Linux carries the CUDA libraries (gigabytes). Without a GPU, name a CPU build instead:
# make demo TORCH="torch --index-url <the CPU index named on pytorch.org>"
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
# Processes that share the tests out: as many as there are cores.
WORKERS ?= auto

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.pointlib-installed
DEMO := runs/demo
BEV := runs/demo-bevfusion
BEV_EVALUATE := tools/evaluate.py --data.root $(BEV)/data --compare --pictures 4 --device cpu
NATIVE_SOURCES := $(shell find cuda pointlib tests -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h' -o -name '*.inc' 2>/dev/null)
ENGINE_SOURCES := $(wildcard pointlib/csrc/*)

.PHONY: help demo demo-bevfusion test test-fast lint format install wheel clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)  ## train on synthetic street scenes, score and draw held-out ones; 5 minutes on 2 cores
	$(BIN)/python tools/prepare_data.py synthetic --root $(DEMO)/data --sequences 00:120 08:10 --azimuth-steps 720
	$(BIN)/python tools/train.py --config configs/synthetic/spvcnn_demo.yaml --data.root $(DEMO)/data --run_dir $(DEMO)/run
	$(BIN)/python tools/evaluate.py --checkpoint $(DEMO)/run/last.ckpt --data.root $(DEMO)/data --out $(DEMO)/evaluation
	$(BIN)/python tools/visualize.py $(DEMO)/data --sequences 08 --predictions $(DEMO)/evaluation --view both --out $(DEMO)/pictures

demo-bevfusion: $(INSTALLED)  ## boxes and maps from LiDAR and cameras, on synthetic nuScenes; 22 minutes on 2 cores
	$(BIN)/python tools/prepare_data.py synthetic-nuscenes --root $(BEV)/data --version v1.0-trainval --scenes 32 --samples-per-scene 8 --sweeps 1
	$(BIN)/python tools/train.py --config configs/synthetic/bevfusion_det_cl_demo.yaml --data.root $(BEV)/data --run_dir $(BEV)/det
	$(BIN)/python tools/train.py --config configs/synthetic/bevfusion_seg_cl_demo.yaml --data.root $(BEV)/data --run_dir $(BEV)/seg
	$(BIN)/python tools/train.py --config configs/synthetic/centerpoint_demo.yaml --data.root $(BEV)/data --run_dir $(BEV)/centerpoint
	$(BIN)/python $(BEV_EVALUATE) --checkpoint $(BEV)/det/last.ckpt --out $(BEV)/evaluation/det
	$(BIN)/python $(BEV_EVALUATE) --checkpoint $(BEV)/seg/last.ckpt --out $(BEV)/evaluation/seg
	$(BIN)/python $(BEV_EVALUATE) --checkpoint $(BEV)/centerpoint/last.ckpt --out $(BEV)/evaluation/centerpoint
	for net in det seg centerpoint; do mkdir -p $(BEV)/pictures/$$net && mv $(BEV)/evaluation/$$net/pictures/*.png $(BEV)/pictures/$$net; done

test: lint  ## lint, types, then every test and every example in a docstring
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --doctest-modules --durations=10 $(PYTEST_ARGS) pointlib tests

test-fast: $(INSTALLED)  ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

lint: $(INSTALLED)  ## ruff, mypy and clang-format; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
ifneq ($(NATIVE_SOURCES),)
	$(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES)
endif

format: $(INSTALLED)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
ifneq ($(NATIVE_SOURCES),)
	$(BIN)/clang-format -i $(NATIVE_SOURCES)
endif

install: $(INSTALLED)  ## make the environment, with pointlib in it in editable form

wheel: $(INSTALLED)  ## build dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build

clean:  ## remove what was built and every cache; keeps the environment and runs/
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f pointlib/*.so $(INSTALLED)
	find benchmarks pointlib tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: PYTHON must be Python 3.10 or newer, got $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "      Install one and name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: the venv module of $(PYTHON) must be installed. On Debian and Ubuntu:" >&2; \
	  echo "      apt install python3-venv    (as root), then run make again" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# An old pip cannot do editable installs from pyproject.toml; a new enough one is left alone. Installing compiles the
# CPU engine, so a change of its sources installs again.
$(INSTALLED): pyproject.toml setup.py $(ENGINE_SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet "pip>=23"
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --editable ".[dev]"
	$(BIN)/python -m pip install --no-deps "nuscenes-devkit==1.2.0" "descartes==1.1.0"  # they ask for an old numpy
	@touch $@
