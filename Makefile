# The two commands are `make book` and `make test`. Each installs what it needs on its first run.
.DEFAULT_GOAL := help
.PHONY: help ready book test random chapters lab text execute study bench pdf clean distclean

PYTHON ?=
PYTHONS := .venv/bin/python python3.11 python3.12 python3.13 python3 python
CHAPTER ?=
FRESH ?=
TIMED ?=
RUNS ?= 20
WORKERS ?=
DASK ?=
ADOPT ?=
STUDIES ?=
SEED ?= $(shell date +%s)
PY := .venv/bin/python

help:
	@echo "make book       build the book; prints the path of its first page"
	@echo "make test       everything that shows the book is true (FRESH=1: forget what passed)"
	@echo "make random     the random tests with other draws (RUNS=20 seeds, from SEED)"
	@echo "make chapters   the chapters alone, compared with their stored outputs"
	@echo "make execute    run chapters and store outputs (CHAPTER=06_lstm, TIMED=1)"
	@echo "make study      run what the studies of a chapter lack (CHAPTER=06, WORKERS=2, ADOPT=1)"
	@echo "make text       pair chapters with text twins that are easy to edit"
	@echo "make lab        JupyterLab on the chapters"
	@echo "make bench      benchmarks against peers"
	@echo "make pdf        the book as one PDF"
	@echo "make clean      remove what was built (distclean: what was fetched too)"

# The environment is made once, and again when the lock, the place or PYTHON is another one.
ready:
	@for python in $(if $(PYTHON),$(PYTHON),$(PYTHONS)); do \
	  if "$$python" -c 'import sys; sys.exit(not (3, 11, 2) <= sys.version_info[:3] < (3, 14))' \
	    2>/dev/null; then exec "$$python" tools/install.py; fi; done; \
	echo "Python 3.11.2 to 3.13 is needed; found none as: $(if $(PYTHON),$(PYTHON),$(PYTHONS))"; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..."; exit 1

book: ready
	@$(PY) tools/stages.py $(if $(FRESH),--fresh) book
	@echo "$(CURDIR)/_build/html/index.html"

test: ready
	@GATES_STUDY=$(STUDIES) $(PY) tools/stages.py $(if $(FRESH),--fresh) test

# `make test` draws the same examples each time; this draws others, and says with which seeds.
random: ready
	@failed=; for run in $$(seq 1 $(RUNS)); do seed=$$(($(SEED) + run)); echo "seed $$seed"; \
	  $(PY) -m pytest tests --ignore=tests/site -m hypothesis -q -p no:cacheprovider \
	    --hypothesis-profile=wide --hypothesis-seed=$$seed || failed="$$failed $$seed"; done; \
	if [ -n "$$failed" ]; then echo "failed with the seeds$$failed"; exit 1; fi

chapters: ready
	@GATES_STUDY=$(STUDIES) $(PY) tools/stages.py $(if $(FRESH),--fresh) chapters

execute: ready
	@$(PY) tools/notebooks.py $(if $(TIMED),--timed) $(CHAPTER)

text: ready
	@$(PY) tools/notebooks.py --text $(CHAPTER)

# ADOPT=1: the code was changed and the numbers were not. DASK: the address of a scheduler.
study: ready
	@WORKERS=$(WORKERS) GATES_DASK=$(DASK) PYTHONHASHSEED=0 \
	  $(PY) tools/studies.py $(if $(ADOPT),--adopt) $(CHAPTER)

lab: ready
	@$(PY) tools/notebooks.py --lab

bench: ready
	@set -e; for script in $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)); do \
	  echo "$$script"; $(PY) "$$script"; done

pdf: book
	@$(PY) tools/pdf.py

clean:
	rm -rf _build *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache \
	  .ruff_cache .jupyter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv _vendor
