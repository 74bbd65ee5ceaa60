# `make lab` to learn, `make test` to check everything; `make` alone lists the rest.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8888
BIN := $(VENV)/bin
OLD_PYTHON = The course needs Python 3.11 or newer, and $(PYTHON) is '$$($(PYTHON) --version 2>&1)': \
  install a newer one and name it, for example 'make lab PYTHON=python3.12'.
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
  { echo "$(OLD_PYTHON)"; exit 1; }
INSTALL := $(PYTHON) tools/lab.py install --venv $(VENV) $(if $(KEEP_TORCH),--keep-torch)

# The models are tiny: one thread each is faster than two that wait for one another.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

.PHONY: help lab test run book slides classroom lint

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile

lab: $(VENV)/.lab  ## install what is missing and open the course in JupyterLab
	@$(BIN)/python tools/lab.py open --venv $(VENV) --port $(PORT) $(LAB_FLAGS)

test: $(VENV)/.all node_modules  ## run every test and every notebook
	$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 -n 2 --dist loadfile tests notebooks

run: $(VENV)/.all  ## execute all notebooks and store their outputs
	$(BIN)/python tools/notebooks.py run

book: $(VENV)/.all node_modules  ## build the course as a web site in build/book
	PATH="$(abspath $(BIN)):$$PATH" mdbook build
	rm -rf build/book/.ipynb_checkpoints

slides: $(VENV)/.lab node_modules  ## make a deck of slides of every notebook in build/slides
	@$(BIN)/python tools/slides.py

classroom: $(VENV)/.classroom node_modules  ## show the notebooks on a projector, with live widgets
	@$(BIN)/python tools/classroom.py --port $(PORT) $(CLASSROOM_FLAGS)

lint: $(VENV)/.all  ## check style, notebooks included
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python tools/notebooks.py check

# Stamps: the set is installed again when its description changes, and only then.
$(VENV)/.lab: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@$(INSTALL) --extras lab
	@touch $@

$(VENV)/.classroom: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@$(INSTALL) --extras lab,classroom
	@touch $(VENV)/.lab $@

$(VENV)/.all: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@$(INSTALL) --extras lab,test,classroom,site,oracles,lm
	@touch $(VENV)/.lab $(VENV)/.classroom $@

# KaTeX for formulas, reveal.js for slides. Without them the tests that need them are skipped and say so.
node_modules: package.json
	@npm install --ignore-scripts --no-package-lock && touch $@ || \
	echo "KaTeX for formulas and reveal.js for slides could not be fetched: that needs Node.js (npm) and the network."
