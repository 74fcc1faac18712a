# make run | test | bench | lab | strip | clean. Everything is installed into .venv, at the versions of constraints.txt.
#
#   MODEL=   a model folder or hub id (default: the notebooks' own, the embedded model)
#   ROUNDS=  rounds of the loop            SEED=     seed of everything that is drawn
#   RUN=     run folder runs/RUN           TIMEOUT=  seconds that one notebook may take
#   ARGS=    more arguments for pytest (make test), the notebooks (make run) or bench.py (make bench)

PYTHON ?= python3
RUN ?= demo
TIMEOUT ?= 3600
PY := .venv/bin/python

# -p only for what was given: the notebooks' own defaults hold otherwise
OVERRIDES = $(if $(MODEL),-p 'model=$(MODEL)') $(if $(ROUNDS),-p 'rounds=$(ROUNDS)') $(if $(SEED),-p 'seed=$(SEED)')

.PHONY: run test bench lab strip clean
.DELETE_ON_ERROR:

run: .venv/installed
	$(PY) -m oelkit notebooks --run '$(RUN)' --timeout '$(TIMEOUT)' $(OVERRIDES) $(ARGS)
	@if [ -e 'runs/$(RUN)/metrics.json' ]; then $(PY) -m oelkit report --run '$(RUN)'; fi

# files side by side, a thread each: what is tested is too small to keep two threads busy
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

bench: .venv/installed-bench
	$(PY) tests/benchmarks/bench.py $(if $(MODEL),--model '$(MODEL)') $(ARGS)

lab: .venv/installed-lab
	$(PY) -m jupyterlab notebooks

# before a commit: notebooks are kept without outputs
strip: .venv/installed
	$(PY) -m nbconvert --clear-output --inplace notebooks/*.ipynb

# runs/ stays: those are your results
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

SOURCES := pyproject.toml requirements.txt constraints.txt
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'oelkit needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'python3 cannot make virtual environments here; on Debian or Ubuntu: sudo apt-get install python3-venv' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/installed: .venv/made $(SOURCES)
	@echo 'installing into .venv (once; some minutes)'
	@$(INSTALL) .
	@touch $@

.venv/installed-%: .venv/made $(SOURCES)
	@echo 'installing into .venv with [$*] (once; some minutes)'
	@$(INSTALL) '.[$*]'
	@touch $@ .venv/installed
