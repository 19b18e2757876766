# make demo [SEED=0] [RUN=demo] | evaluate [RUN=demo] | test | check | bench      each does its own set-up; EXTRA=gpu for CUDA builds
EXTRA ?= cpu
SEED ?= 0
RUN ?= demo
PYTHON := .venv/bin/python

.PHONY: setup demo evaluate test check bench

setup:
	@EXTRA=$(EXTRA) bash deploy/setup.sh

demo: | setup
	$(PYTHON) -m videostr.launch --config configs/tabletop_cpu.yaml run.name=$(RUN) run.seed=$(SEED)

# The shipped policy and the one that the demo trained, on the held-out records, in three modes, side by side.
evaluate: | setup
	$(PYTHON) -m videostr.evaluate --config configs/eval_tabletop.yaml name=before
	$(PYTHON) -m videostr.evaluate --config configs/eval_tabletop.yaml name=after model=$$(ls -d runs/$(RUN)/checkpoints/*/policy | tail -1)
	for mode in graph think direct; do $(PYTHON) -m videostr.evaluate --out evaluations/tabletop-$$mode --compare evaluations/before/$$mode evaluations/after/$$mode || exit; done

check: | setup
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

test: check
	$(PYTHON) -m pytest

bench: build/bench/done | setup
	OMP_WAIT_POLICY=passive $(PYTHON) -m pytest tests/benchmarks -q -s -o 'python_files=bench_*.py' # such files are no part of make test

# TRL sees the packages of .venv, and .venv does not see TRL's: transformers changes its ways where accelerate is installed.
build/bench/done: pyproject.toml | setup
	$(PYTHON) -m venv --clear --without-pip build/bench
	$(PYTHON) -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
	  >$$(echo build/bench/lib/python3.*/site-packages)/parent.pth
	build/bench/bin/python -m pip install -q $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])')
	touch $@
