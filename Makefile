# Two commands: `make bench` times and charts, `make test` validates. Both set up .venv.
PYTHON ?= python3
GRID ?= default
RESULTS ?= results
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: bench pages test docs lint types static clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

# Writes below $(RESULTS)/<device>/ and nowhere else. What was measured is drawn and printed even
# where a case failed, or where the run was ended early; then make fails after that.
bench: $(VENV)/installed
	@$(BIN)/python -m pytest --benchmark --benchmark-quiet --grid=$(GRID) --results=$(RESULTS) $(ARGS); \
	measured=$$?; \
	$(BIN)/python -m bench.plot --results $(RESULTS) --latest && \
	$(BIN)/python -m bench.table --results $(RESULTS) --latest && exit $$measured

# For maintainers: the figures of README.md and docs/, and the charts of all committed devices.
pages: $(VENV)/installed
	$(BIN)/python -m bench.plot --pages

# Everything with numba's kernels; what tests kernels with Triton's as well, interpreted, and where
# there is a CUDA device on that.
PYTEST := $(BIN)/python -m pytest tests --numprocesses auto --dist worksteal
test: $(VENV)/installed
	TRITON_INTERPRET=0 $(PYTEST) -m "not gpu" $(ARGS)
	TRITON_INTERPRET=1 $(PYTEST) -m kernels $(ARGS) || test $$? = 5  # none of them is chosen
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		TRITON_INTERPRET=0 $(BIN)/python -m pytest tests -m gpu $(ARGS); fi

docs: $(VENV)/installed
	$(BIN)/python docs/site/build.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Against a plain install: in the tree the package is spread over three folders.
types: $(VENV)/installed
	rm -rf $(VENV)/plain build
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/plain .
	cd $(VENV) && MYPYPATH=plain bin/mypy --config-file ../pyproject.toml -p fused_elbo
	rm -rf build

static: $(VENV)/installed
	$(BIN)/python -m bench.static --check
	cd tests && ../$(BIN)/python -m helpers.cpu_code

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
