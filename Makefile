# `make` lists the targets. PYTHON names the Python to make .venv with; DETECTRON2=source builds
# Detectron2 from its official source instead of installing the wheel; WHEELS=folder installs from
# there, without a network; FAST=1 shortens the demo; BENCH holds options of tools/benchmark.py.
SUITABLE = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
CANDIDATES = .venv/bin/python python3.11 python3.12 python3.10 python3
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && exit; done; echo python3)
DETECTRON2 ?= auto
# Threads that wait do not spin: on a busy machine spinning slows torch down many times over.
export OMP_WAIT_POLICY ?= PASSIVE
VENV_PYTHON = .venv/bin/python
ifdef WHEELS
export PIP_NO_INDEX = 1
export PIP_FIND_LINKS = $(abspath $(WHEELS))
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo lint test test-slow test-newest sanitize bench gpu-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## make .venv with everything needed (PYTHON=..., DETECTRON2=source)
	@$(PYTHON) tools/setup_env.py --detectron2 $(DETECTRON2) $(if $(WHEELS),--wheels $(WHEELS))

demo: setup  ## train, evaluate and look at a small model on drawn shapes (FAST=1: two minutes)
	@$(VENV_PYTHON) tools/demo.py $(if $(FAST),--fast)

lint: setup  ## check style and format
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .

test: lint  ## lint, then the tests
	@$(VENV_PYTHON) -m pytest -m "not slow"

test-slow: lint  ## lint, then all tests, slow ones too
	@$(VENV_PYTHON) -m pytest

test-newest: setup  ## tests of data and evaluation with the newest numpy and Pillow
	@$(VENV_PYTHON) tools/newest.py

sanitize: setup  ## run the operators' tests under the compiler's sanitizers
	@$(VENV_PYTHON) tools/sanitize.py

bench: setup  ## time operators and model, and others beside them (BENCH=--quick: half a minute)
	@$(VENV_PYTHON) tools/setup_env_bench.py
	@$(VENV_PYTHON) tools/benchmark.py $(BENCH)

gpu-check: export GPU_CHECK_STARTED := $(shell date +%s)
gpu-check: setup  ## check that a GPU computes what it should, and time it (at most nine minutes)
	@$(VENV_PYTHON) tools/gpu_check.py

clean:  ## remove what was built, trained and drawn; .venv stays
	rm -rf build output datasets/shapes*/ *.egg-info .pytest_cache .ruff_cache aff_seg/_C.*
	find aff_seg demo datasets tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
