# make install     creates .venv with everything needed to train, evaluate and deblur
# make demo        restores a clip, trains a small network from scratch and prints its gain
# make docs        builds the site, README and guides and the API, into site/
# make test        runs lint, types and tests
# make stress      runs the long tests that make test leaves out
# make docs-check  runs the commands of README and guides on tiny inputs, examples, the notebook
PYTHON ?= python3
# An active virtual environment is used as it is; otherwise .venv is created.
VENV := $(or $(VIRTUAL_ENV),.venv)
ifneq ($(words $(VENV)),1)
$(error $(VENV): the path of a virtual environment must not contain spaces; deactivate it)
endif
BIN := $(VENV)/bin
CHECK := import sys; sys.exit('Python 3.11 or newer is needed, as in: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)
# Several clones may share an environment, which holds the one installed last.
STALE := $(shell test "$$(cat $(VENV)/.installed 2>/dev/null)" = "$$(pwd)" || echo stale)

# Hides setuptools' advice on editable installs, which looks like an error. pip would compile to
# bytecode on one core: `install` does on all, and what extras bring is compiled when imported.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-compile

.PHONY: install demo converter test stress docs docs-check clean FORCE

install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml $(STALE:stale=FORCE)
ifeq ($(VENV),.venv)
	@test -x $(BIN)/python || $(PYTHON) -c "$(CHECK)"
	@test -x $(BIN)/python || { new=$$(test -e .venv || echo new); $(PYTHON) -m venv .venv || { test -z "$$new" || rm -rf .venv; exit 1; }; }
endif
	@test -x $(BIN)/python || { echo "$(VENV): contains no bin/python; deactivate or recreate it" >&2; exit 1; }
	@$(BIN)/python -c "$(CHECK)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip > /dev/null
	$(PIP) --upgrade pip
	$(PIP) --editable .
# Some packages hold files for other versions of Python, which cannot be compiled.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@pwd > $@

demo: install
	$(BIN)/python examples/demo.py

PYTEST := $(BIN)/python -m pytest --numprocesses=3 --dist=loadfile
# Checks the annotated shapes of all calls, which takes 7 % of the time: in make stress, and in
# make test with CHECK_SHAPES=1, as in tests/newest.sh.
SHAPES := --jaxtyping-packages=jaxdeblur,kernels,beartype.beartype

# The converter to ONNX, without its dependencies: they include an older Orbax (docs/deploy.md).
converter: install
	$(PIP) --editable '.[export]'
	$(PIP) --no-deps 'jax2onnx>=0.17.1,<0.18'

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!; $(PYTEST) $(if $(CHECK_SHAPES),$(SHAPES)) -m "not stress" --durations=15; tests=$$?; wait $$types && exit $$tests

# Without the converter, the tests that need it are skipped and say so.
stress: $(VENV)/.installed-test
	-$(MAKE) converter
	$(PYTEST) $(SHAPES) -m stress --durations=15
	$(PYTEST) $(SHAPES) tests/deploy -m "not stress"

docs: install
	$(PIP) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

docs-check: $(VENV)/.installed-test
	$(BIN)/python tests/docs_check.py --run

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	$(BIN)/python tests/install_extras.py
	@touch $@

clean:
	rm -rf .venv build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
