# make run | install | check | test-fast | test | soak | bench | docs | gallery | pictures | lab | strip | clean.
# Everything is installed into .venv, at the versions of constraints.txt.
#
#   MODEL=   a model folder or hub id (default: the notebooks' own, the embedded model)
#   ROUNDS=  rounds of the loop            SEED=     seed of everything that is drawn
#   RUN=     run folder runs/RUN           TIMEOUT=  seconds that one notebook may take
#   ARGS=    more arguments for pytest (make test), the notebooks (make run) or bench.py (make bench)

# Threads that wait sleep instead of spinning, which starves every other process; yours, if set.
export OMP_WAIT_POLICY ?= PASSIVE

PYTHON ?= python3
RUN ?= demo
TIMEOUT ?= 3600
PY := .venv/bin/python

# -p only for what was given: the notebooks' own defaults hold otherwise
OVERRIDES = $(if $(MODEL),-p 'model=$(MODEL)') $(if $(ROUNDS),-p 'rounds=$(ROUNDS)') $(if $(SEED),-p 'seed=$(SEED)')

.PHONY: run install check test-fast test soak bench docs gallery pictures lab strip clean
.DELETE_ON_ERROR:

run: .venv/installed
	$(PY) -m oelkit notebooks --run '$(RUN)' --timeout '$(TIMEOUT)' $(OVERRIDES) $(ARGS)
	@if [ -e 'runs/$(RUN)/metrics.json' ]; then $(PY) -m oelkit report --run '$(RUN)'; fi

install: .venv/installed

# what needs no run: under a minute. STRIPPED: notebooks are kept without outputs, cell ids stay
STRIPPED := .venv/bin/nbstripout --keep-id
check: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(STRIPPED) --verify notebooks/*.ipynb
	$(PY) -m pyright --pythonpath $(PY)

# files side by side, a thread each: what is tested is too small to keep two threads busy
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# after each edit: no notebook, no browser, nothing that takes seconds
test-fast: .venv/installed-test
	$(PYTEST) -m 'not slow' --ignore tests/notebooks --ignore tests/browser $(ARGS)

test: .venv/installed-test
	$(PYTEST) $(ARGS)

# 30 runs killed at random moments and resumed, a million hostile inputs, the same targets guided by
# coverage where there is a wheel of atheris, 200 rounds and large files; figures in data/results
soak: .venv/installed-test
	OMP_NUM_THREADS=1 $(PY) tests/soak.py $(ARGS)
	$(PY) tests/fuzz.py
	-$(PY) -m pip install --quiet --only-binary :all: atheris==3.0.0
	$(PY) tests/guided.py
	$(PY) tests/large.py

bench: .venv/installed-bench
	$(PY) tests/benchmarks/bench.py $(if $(MODEL),--model '$(MODEL)') $(ARGS)

# the site, into build/docs/site; a warning is an error
docs: .venv/installed-docs
	-@$(PY) docs/site/gallery.py --check
	$(PY) docs/site/build.py

# executed copies of the notebooks with their figures, from a run
gallery: run
	$(PY) docs/site/gallery.py '$(RUN)'

# the README's pictures of editor and viewer, taken by their browser tests
pictures: .venv/installed-test
	mkdir -p build/pictures
	OELKIT_PICTURES=build/pictures $(PYTEST) tests/browser/test_editor.py tests/browser/test_viewer.py -k both_themes
	for name in editor_light editor_dark viewer_light viewer_dark; do \
	  cp "build/pictures/$${name}_1600.png" "data/results/$$name.png" || exit 1; done

lab: .venv/installed-lab
	$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks

# before a commit
strip: .venv/installed-dev
	$(STRIPPED) notebooks/*.ipynb

# runs/ stays: those are your results
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

SOURCES := pyproject.toml requirements.txt constraints.txt
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'oelkit needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'python3 cannot make virtual environments here; on Debian or Ubuntu: sudo apt-get install python3-venv' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv
	-@$(PY) -m pip install --quiet --disable-pip-version-check --upgrade pip  # twice as fast as one of 2023
	@touch $@

.venv/installed: .venv/made $(SOURCES)
	@echo 'installing into .venv (once; some minutes)'
	@$(INSTALL) .
	@touch $@

.venv/installed-%: .venv/made $(SOURCES)
	@echo 'installing into .venv with [$*] (once; some minutes)'
	@$(INSTALL) '.[$*]'
	@touch $@ .venv/installed $(if $(filter dev,$*),.venv/installed-test)  # [dev] holds [test]
