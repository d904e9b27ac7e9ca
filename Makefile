# make install   makes .venv with everything needed to train, evaluate and deblur
# make demo      restores a clip, trains a small network from scratch and shows what it gained
# make test      lint, types and tests
PYTHON ?= python3
# An active virtual environment is used as it is; otherwise .venv is made.
VENV := $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
CHECK := import sys; sys.exit('Python 3.11 or newer is needed, as in: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)

.PHONY: install demo test clean

install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c "$(CHECK)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

demo: install
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal --durations=15
$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python tests/install_extras.py
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
