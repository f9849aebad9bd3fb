# Two commands, each from nothing: `make demo` and `make test`. PYTHON chooses the interpreter, VENV the folder,
# CUDA=12 DALI's build for CUDA 12.
PYTHON ?= python3
VENV ?= .venv
CUDA ?= 13
INSTALLED = $(VENV)/.installed

.PHONY: demo test lint clean

demo: $(INSTALLED)
	rm -rf demo
	$(VENV)/bin/python cli.py demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e '.[test]'
ifeq ($(CUDA),12)
	# Both builds install the same module, so the one goes before the other comes
	$(VENV)/bin/pip uninstall -y nvidia-dali-cuda130
	$(VENV)/bin/pip install 'nvidia-dali-cuda120>=2.2,<3'
endif
	touch $@

clean:
	rm -rf $(VENV) demo
