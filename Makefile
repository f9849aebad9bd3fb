# Each command works from nothing: it makes a virtual environment first. `make` or `make help` lists them.
# PYTHON chooses the interpreter, VENV the environment's folder, CUDA=12 DALI's build for CUDA 12.
PYTHON ?= python3
VENV ?= .venv
CUDA ?= 13
INSTALLED = $(VENV)/.installed

.PHONY: help demo test lint clean

help:
	@echo 'make demo   render images, shard them, train two towers on them (about two minutes once installed)'
	@echo 'make test   run the tests'
	@echo 'make lint   check style (ruff) and types (mypy)'
	@echo 'make clean  delete the environment and the demo'
	@echo 'Variables: PYTHON=python3.12, VENV=.venv, CUDA=12'
	@echo 'After make demo: . $(VENV)/bin/activate; python cli.py --help'

demo: $(INSTALLED)
	rm -rf demo
	$(VENV)/bin/python cli.py demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e '.[test]'
ifeq ($(CUDA),12)
	# Both builds install the same module, so one is removed before the other is installed
	$(VENV)/bin/pip uninstall -y nvidia-dali-cuda130
	$(VENV)/bin/pip install 'nvidia-dali-cuda120>=2.2,<3'
endif
	touch $@

clean:
	rm -rf $(VENV) demo
