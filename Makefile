# Two commands: `make bench` times and charts, `make test` validates. Both set up .venv.
PYTHON ?= python3
GRID ?= default
RESULTS ?= results
VENV := .venv
BIN := $(VENV)/bin

.PHONY: bench test lint types static clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

bench: $(VENV)/installed
	$(BIN)/python -m pytest --benchmark --grid $(GRID) --results $(RESULTS)
	$(BIN)/python -m bench.plot --results $(RESULTS) --latest
	$(BIN)/python -m bench.table --results $(RESULTS) --latest

test: $(VENV)/installed
	$(BIN)/python -m pytest tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Against a plain install: in the tree, `fused_elbo` is spread over three folders.
types: $(VENV)/installed
	$(PYTHON) -m venv --system-site-packages $(VENV)/types
	$(BIN)/python -m pip --python $(VENV)/types install --quiet --no-deps --force-reinstall .
	$(BIN)/mypy --python-executable $(VENV)/types/bin/python -p fused_elbo

static: $(VENV)/installed
	$(BIN)/python -m bench.static_report --check

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
