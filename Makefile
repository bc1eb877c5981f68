# `make bench` times and charts, `make test` validates, `make docs` builds the site. All set up .venv.
PYTHON ?= python3
GRID ?= default
RESULTS ?= results
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: bench pages test test-gpu ptx docs lint types static clean

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

# All tests with numba's kernels. Then a sample of the kernels' tests with Triton's, compiled for
# NVIDIA and emulated. The interpreter runs what AMD's GPUs have instead of NVIDIA's instructions: the
# tests that every op has are enough for that. A GPU is hidden from these three; where there is one,
# the tests that need it run last, those that fill its memory one at a time.
PYTEST := $(BIN)/python -m pytest
PARALLEL := --numprocesses auto --dist worksteal
ON_CPU := CUDA_VISIBLE_DEVICES= HIP_VISIBLE_DEVICES= TRITON_INTERPRET=0
OF_EVERY_OP := tests/ops/test_ops.py tests/ops/test_numerics.py
NONE_CHOSEN := test $$? = 5  # pytest's word for it, where ARGS choose
test: $(VENV)/installed
	$(ON_CPU) $(PYTEST) tests $(PARALLEL) -m "not gpu" $(ARGS)
	$(ON_CPU) TRITON_PTX=1 $(PYTEST) tests $(PARALLEL) -m kernels --sample $(ARGS) || $(NONE_CHOSEN)
	$(ON_CPU) TRITON_INTERPRET=1 $(PYTEST) $(OF_EVERY_OP) $(PARALLEL) -m kernels --sample $(ARGS) || $(NONE_CHOSEN)
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(MAKE) --no-print-directory test-gpu; fi

test-gpu: $(VENV)/installed
	TRITON_INTERPRET=0 $(PYTEST) tests --numprocesses 4 --dist worksteal -m "gpu and not large" $(ARGS) \
		|| $(NONE_CHOSEN)
	TRITON_INTERPRET=0 $(PYTEST) tests -m "gpu and large" $(ARGS) || $(NONE_CHOSEN)

# All of the kernels' tests as NVIDIA's compiler makes them, for three architectures; then with every
# approximate instruction as far off as is documented.
ptx: $(VENV)/installed
	for arch in 80 90 100; do \
		$(ON_CPU) TRITON_PTX=1 PTX_ARCH=$$arch $(PYTEST) tests $(PARALLEL) -m kernels $(ARGS) || exit; done
	$(ON_CPU) TRITON_PTX=1 PTX_APPROX=mixed $(PYTEST) tests $(PARALLEL) -m kernels $(ARGS)

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

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
