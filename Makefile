# make demo [SEED=0] [RUN=demo] | evaluate [RUN=demo] | test | check | bench      each does its own set-up; EXTRA=gpu for CUDA builds
# make test LATEST=1   the newest versions that pyproject.toml allows, in build/latest, and what they break
# make gpu-check      does all of it work on the GPUs of this machine? EXTRA=cpu: the same checks without GPUs
# make lock            makes these the versions that are installed (deploy/locks)
EXTRA ?= cpu
SEED ?= 0
RUN ?= demo
PYTHON := .venv/bin/python
UNITS := tests/videostr tests/rewards
ACTORS := tests/actors tests/deploy

.PHONY: setup demo evaluate test test-runs test-actors test-units check bench lock gpu-check

setup:
	@EXTRA=$(EXTRA) LATEST= bash deploy/setup.sh

demo: | setup
	$(PYTHON) -m videostr.launch --config configs/tabletop_cpu.yaml run.name=$(RUN) run.seed=$(SEED)

# The shipped policy and the one that the demo trained, on the held-out records, in all modes, side by side.
evaluate: | setup
	$(PYTHON) -m videostr.evaluate --config configs/eval_tabletop.yaml run.name=before
	$(PYTHON) -m videostr.evaluate --config configs/eval_tabletop.yaml run.name=after model.path=$$(ls -d runs/$(RUN)/checkpoints/*/policy | tail -1)
	for mode in graph think direct blind single_frame shuffled; do $(PYTHON) -m videostr.evaluate --out evaluations/tabletop-$$mode --compare evaluations/before/$$mode evaluations/after/$$mode || exit; done

check: | setup
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

ifeq ($(LATEST),)
test: check
	@$(MAKE) --no-print-directory -k -j2 test-runs test-actors test-units

# Whole runs, then single actors, then what needs neither Ray nor an engine: two of the three at once, one test of each at a time.
test-runs: | setup
	$(PYTHON) -m pytest $(addprefix --ignore=,$(UNITS) $(ACTORS))

test-actors: | setup
	$(PYTHON) -m pytest $(ACTORS)

test-units: | setup
	$(PYTHON) -m pytest $(UNITS)
else
test: | setup
	EXTRA=$(EXTRA) VENV=build/latest bash deploy/setup.sh
	LATEST=1 $(PYTHON) deploy/latest.py
endif

gpu-check: EXTRA = gpu
gpu-check: | setup
	$(PYTHON) -m videostr.gpu_check $(if $(filter cpu,$(EXTRA)),--cpu)

lock: | setup
	bash deploy/lock.sh

bench: build/bench/done | setup
	OMP_WAIT_POLICY=passive $(PYTHON) -m pytest tests/benchmarks -q -s -o 'python_files=bench_*.py' # such files are no part of make test

# TRL sees the packages of .venv, and .venv does not see TRL's: transformers changes its ways where accelerate is installed.
build/bench/done: deploy/locks/bench.txt | setup
	$(PYTHON) -m venv --clear --without-pip build/bench
	$(PYTHON) -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
	  >$$(echo build/bench/lib/python3.*/site-packages)/parent.pth
	build/bench/bin/python -m pip install -q -c deploy/locks/bench.txt $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])')
	touch $@
