# Set-up and the two commands of the README. Needs Python 3.11 with headers, gcc, g++, cmake and make; the rest is installed
# into .venv here, once: a second run installs nothing.

PYTHON ?= python3
BIN := .venv/bin
# llama.cpp is compiled at install (llama-cpp-python ships sources only): the library alone, without its tools and server.
LLAMA_CPP := CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF"

.PHONY: demo check test test-long lint setup kernels clean

demo: setup
	$(BIN)/quantwright demo

# Under a minute on two cores: what to run before every commit. Types and the two halves of the tests run beside one
# another; threads of numerical libraries would wait for one another longer than these small tests compute.
HALF := $(addprefix tests/unit/,checkpoint gguf jobs sources)
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@export OMP_NUM_THREADS=1; $(BIN)/mypy & types=$$!; $(BIN)/pytest $(HALF) & half=$$!; \
	$(BIN)/pytest tests/unit $(addprefix --ignore=,$(HALF)); rest=$$?; wait $$half && wait $$types && exit $$rest

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-long: setup
	$(BIN)/pytest -m long

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: .venv/installed

# The compiled kernels again, after a change of quantize/kernels/c; set-up builds them too.
kernels:
	$(BIN)/python setup.py -q build_ext --inplace

# Files are checked against their sha256 where those are known; elsewhere the versions alone are pinned.
HASHED := $(shell $(PYTHON) -c "import platform, sys; print(sys.version_info[:2] == (3, 11) and platform.system() + platform.machine() == 'Linuxx86_64' and sys.implementation.name == 'cpython')" 2>/dev/null)

KERNELS := setup.py $(wildcard quantize/kernels/c/*)
.venv/installed: pyproject.toml $(KERNELS) quantize/constraints.txt requirements.lock
	@echo "== 1/4 environment in .venv"
	$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] < (3, 10) and 'Python 3.10 or newer is needed (3.11 is what the pins were tested with)')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	@echo "== 2/4 packages, each against its sha256; llama.cpp is compiled here, which takes 4 to 10 minutes on 2 cores"
ifeq ($(HASHED),True)
# Of torch's two builds the one that pip takes by itself; asked for by hash, it would take CUDA's gigabytes from the index.
	$(BIN)/python -m pip download --no-deps -c quantize/constraints.txt -d .venv/torch torch
	sed -n '/^torch==/,/[^\\]$$/p' requirements.lock > .venv/torch/torch.lock
	$(BIN)/python -m pip install --no-deps --require-hashes --no-index --find-links .venv/torch -r .venv/torch/torch.lock
	rm -r .venv/torch
	$(LLAMA_CPP) $(BIN)/python -m pip install --no-deps --require-hashes -r requirements.lock
else
	@echo "   no sha256 are known for this Python and system: by version alone"
	$(BIN)/python -m pip install -c quantize/constraints.txt torch
endif
	@echo "== 3/4 this project, and what its packages need besides (CUDA's libraries for torch's CUDA build)"
	$(LLAMA_CPP) $(BIN)/python -m pip install -c quantize/constraints.txt -e '.[dev]'
	@echo "== 4/4 compute kernels of quanto and GPTQModel, compiled once (1 to 3 minutes)"
	$(BIN)/python -m quantize.hf.extensions
	touch $@

clean:
	rm -rf .venv build *.egg-info
