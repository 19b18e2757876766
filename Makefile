# make demo [SEED=0] [RUN=demo] | test | check | bench      each does its own set-up; EXTRA=gpu for CUDA builds
EXTRA ?= cpu
SEED ?= 0
RUN ?= demo
PYTHON := .venv/bin/python

.PHONY: setup demo test check bench

setup:
	@EXTRA=$(EXTRA) bash deploy/setup.sh

demo: | setup
	$(PYTHON) -m videostr.launch --config configs/tabletop_cpu.yaml run.name=$(RUN) run.seed=$(SEED)

check: | setup
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

test: check
	$(PYTHON) -m pytest

bench: | setup
	$(PYTHON) -m pytest tests/benchmarks -q -s -o 'python_files=bench_*.py' # such files are no part of make test
