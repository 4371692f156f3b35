# Set-up and checks. `make demo` and `make test` start from nothing: they make .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# What pip byte-compiles where it copies it, and doesn't where it links to it.
ROOMS := cost_model passes codegen fuser
# A worker for each processor, up to four, begins with a stretch of the files in order; one that is done takes over half of
# what another has left.
PYTEST_ARGS ?= -n logical --maxprocesses=4 --dist=worksteal

.PHONY: demo test check install install-test bench bench-cpu bench-llama bench-schedule clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: a range would take the newest build, with gigabytes of CUDA libraries.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install -q "$(TORCH)" numpy
	$(BIN)/pip install -q "setuptools>=70" wheel
	$(BIN)/pip install -q --no-build-isolation -e ".[demo]"
	$(BIN)/python -m compileall -q $(ROOMS)
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed pyproject.toml
	$(BIN)/pip install -q --no-build-isolation -e ".[test]"
	touch $@

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

demo: install
	$(BIN)/python examples/demo.py

test: check
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# mypy and import-linter see the package layout only in an installed wheel, so one is built and unpacked for them.
check: install-test
	$(BIN)/ruff check .
	rm -rf build/check && mkdir -p build/check
	$(BIN)/pip install -q --no-deps --no-build-isolation --target build/check .
	cd build/check && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p rooffuse
	cd build/check && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml

# A quick round over the suites, in under ten minutes on two cores.
bench: install
	$(BIN)/python -m benchmarks run --suite kernels,blocks,decode,compile --quick

# The kernels in both types and compile times, on this CPU; writes the rows.
bench-cpu: install
	$(BIN)/python -m benchmarks run --suite kernels --quick --dtype fp32
	$(BIN)/python -m benchmarks run --suite kernels --quick --dtype bf16
	$(BIN)/python -m benchmarks run --suite compile --quick

# Run time and cold compile time of Llama-shaped layers beside eager and Inductor.
bench-llama: install
	$(BIN)/python -m benchmarks run --suite blocks --only llama --dtype fp32 --cold

# Bytes and launches of our GPU schedule beside Inductor's; needs no GPU.
bench-schedule: install
	$(BIN)/python -m benchmarks schedule

clean:
	rm -rf $(VENV) build dist *.egg-info
