# Two commands do all the set-up, in either order, and again:
#   make main   environment, installation, and the main job (data, training, text-only baseline, evaluation)
#   make test   environment, installation, and the tests
PYTHON ?= python3
VENV ?= .venv
SHELL := /bin/bash

.PHONY: main test env check clean
main: env
	source $(VENV)/bin/activate && bash launch/main.sh

test: env
	PYTHON=$(VENV)/bin/python bash tools/check.sh

env: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "mtvl needs Python 3.10 or newer; set PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --upgrade pip
	$(VENV)/bin/python -m pip install -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
