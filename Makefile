# make install   makes .venv with everything needed to train, evaluate and deblur
# make demo      restores a clip, trains a small network from scratch and shows what it gained
# make web       serves a page on this machine that deblurs in the browser (docs/deploy.md)
# make test      lint, types and tests
# make stress    the tests that make test leaves out: they run long
# make docs-check  runs the commands that README and guides show, on tiny inputs, and the notebook
PYTHON ?= python3
# An active virtual environment is used as it is; otherwise .venv is made.
VENV := $(or $(VIRTUAL_ENV),.venv)
ifneq ($(words $(VENV)),1)
$(error make cannot use $(VENV), a virtual environment with a space in its path: deactivate it)
endif
BIN := $(VENV)/bin
CHECK := import sys; sys.exit('Python 3.11 or newer is needed, as in: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)
# One environment may serve several clones, of which it holds the one that was installed last.
STALE := $(shell test "$$(cat $(VENV)/.installed 2>/dev/null)" = "$$(pwd)" || echo stale)

# Without setuptools' advice on editable installs, which reads like a fault.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet

.PHONY: install demo converter web test stress docs-check clean FORCE

install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml $(STALE:stale=FORCE)
ifeq ($(VENV),.venv)
	@test -x $(BIN)/python || $(PYTHON) -c "$(CHECK)"
	@test -x $(BIN)/python || { new=$$(test -e .venv || echo new); $(PYTHON) -m venv .venv || { test -z "$$new" || rm -rf .venv; exit 1; }; }
endif
	@test -x $(BIN)/python || { echo "$(VENV) has no bin/python: deactivate it, or make it anew" >&2; exit 1; }
	@$(BIN)/python -c "$(CHECK)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip > /dev/null
	$(PIP) --upgrade pip
	$(PIP) --editable .
	@pwd > $@

demo: install
	$(BIN)/python examples/demo.py

PYTEST := $(BIN)/python -m pytest --numprocesses=3 --dist=worksteal

# To ONNX: without its dependencies, of which it asks for an older Orbax (docs/deploy.md).
converter: install
	$(PIP) --editable '.[export]'
	$(PIP) --no-deps 'jax2onnx>=0.17.1,<0.18'

web: converter
	$(BIN)/python web/serve.py

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not stress" --durations=15

# Without the converter, what it makes is not tested, and says so.
stress: $(VENV)/.installed-test
	-$(MAKE) converter
	$(PYTEST) -m stress --durations=15
	$(PYTEST) tests/deploy -m "not stress"

docs-check: $(VENV)/.installed-test
	$(BIN)/python tests/docs_check.py --run

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	$(BIN)/python tests/install_extras.py
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
