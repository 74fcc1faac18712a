# make run | install | check | test-fast | test | soak | bench | docs | gallery | pictures | lab | strip | clean.
# Everything is installed into .venv, at the versions of constraints.txt.
#
#   MODEL=   a model folder or hub id (default: that of the notebooks, the embedded model)
#   ROUNDS=  rounds of the loop            SEED=     random seed
#   RUN=     run folder runs/RUN           TIMEOUT=  most seconds per notebook
#   ARGS=    more arguments for pytest (make test), the notebooks (make run) or bench.py (make bench)

# Waiting threads sleep instead of spinning, which would starve other processes. Your value wins.
export OMP_WAIT_POLICY ?= PASSIVE

PYTHON ?= python3
RUN ?= demo
TIMEOUT ?= 3600
PY := .venv/bin/python

# -p only for variables that are given; otherwise the notebooks' defaults apply
OVERRIDES = $(if $(MODEL),-p 'model=$(MODEL)') $(if $(ROUNDS),-p 'rounds=$(ROUNDS)') $(if $(SEED),-p 'seed=$(SEED)')

.PHONY: run install check test-fast test soak bench docs gallery pictures lab strip clean
.DELETE_ON_ERROR:

run: .venv/installed
	$(PY) -m oelkit notebooks --run '$(RUN)' --timeout '$(TIMEOUT)' $(OVERRIDES) $(ARGS)
	@if [ -e 'runs/$(RUN)/metrics.json' ]; then $(PY) -m oelkit report --run '$(RUN)'; fi

install: .venv/installed

# Checks that run no code, in under a minute. STRIPPED removes outputs and keeps cell ids.
STRIPPED := .venv/bin/nbstripout --keep-id
check: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(STRIPPED) --verify notebooks/*.ipynb
	$(PY) -m pyright --pythonpath $(PY)

# test files in parallel with one thread each, as the tests are too small to keep two busy
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# for use after each edit: no notebooks, no browser, no slow tests
test-fast: .venv/installed-test
	$(PYTEST) -m 'not slow' --ignore tests/notebooks --ignore tests/browser $(ARGS)

test: .venv/installed-test
	$(PYTEST) $(ARGS)

# 30 runs killed at random moments and resumed; a million hostile inputs; the same targets guided by
# coverage, if there is a wheel of atheris; 200 rounds and large files. Results: data/results.
soak: .venv/installed-test
	OMP_NUM_THREADS=1 $(PY) tests/soak.py $(ARGS)
	$(PY) tests/fuzz.py
	-$(PY) -m pip install --quiet --only-binary :all: atheris==3.0.0
	$(PY) tests/guided.py
	$(PY) tests/large.py

bench: .venv/installed-bench
	$(PY) tests/benchmarks/bench.py $(if $(MODEL),--model '$(MODEL)') $(ARGS)

# builds the site in build/docs/site; a warning is an error
docs: .venv/installed-docs
	-@$(PY) docs/site/gallery.py --check
	$(PY) docs/site/build.py

# copies a run's executed notebooks with their figures to gallery/
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

# keeps runs/, which holds your results
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

SOURCES := pyproject.toml requirements.txt constraints.txt
# Modules are compiled when first imported, as compiling all takes longer than installing them.
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --no-compile \
  --constraint constraints.txt --editable

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'oelkit needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'python3 cannot create virtual environments; on Debian or Ubuntu, run: sudo apt-get install python3-venv' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv
	-@$(PY) -m pip install --quiet --disable-pip-version-check --upgrade pip  # twice as fast as a pip of 2023
	@touch $@

.venv/installed: .venv/made $(SOURCES)
	@echo 'installing into .venv (only once; takes a few minutes)'
	@$(INSTALL) .
	@touch $@

.venv/installed-%: .venv/made $(SOURCES)
	@echo 'installing into .venv with [$*] (only once; takes a few minutes)'
	@$(INSTALL) '.[$*]'
	@touch $@ .venv/installed $(if $(filter dev,$*),.venv/installed-test)  # [dev] includes [test]
