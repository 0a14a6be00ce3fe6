# Two commands for a fresh machine with python3 and a C++ compiler:
#   make demo   environment, build, an example on real data and a short benchmark table
#   make test   environment, build, all tests except those of make slow and make sanitize
# One command for a machine with a GPU, with torch, pybind11, ninja, pytest and pytest-benchmark installed:
#   make gpu    build for that GPU, CUDA tests, sanitizers, benchmarks, report
# The commands use the active environment if it has torch. Otherwise they create .venv with this torch:
TORCH ?= torch==2.13.0
# With EXTRAS=test,rivals,onnx,examples no test is skipped because of a missing package.
EXTRAS ?= test

# The build type of `make cmake`.
CMAKE_BUILD ?= Release

PYTHON ?= python3
PY := $(shell $(PYTHON) -c "import torch" 2>/dev/null && echo $(PYTHON) || echo .venv/bin/python)
PIP = $(PY) -m pip install --quiet --disable-pip-version-check
BUILD = $(PIP) --no-build-isolation --editable

.PHONY: demo test slow sanitize clients bench gpu lint docs cmake clean tools

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$@ -m pip install --quiet --disable-pip-version-check $(TORCH) numpy

tools: $(filter .venv/%,$(PY))
	$(PIP) "setuptools>=77" ninja

demo: tools
	$(BUILD) ".[examples,bench]"
	$(PY) -m fastparam
	$(PY) examples/train_digits.py
	$(PY) -m pytest -q benchmarks --quick

test: tools
	$(BUILD) ".[$(EXTRAS)]"
	$(PY) -m fastparam
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses 8 -m "not slow and not sanitize"

# The tests that compile graphs, start processes or sweep over many matrices. They take longer than all
# others.
slow: tools
	$(BUILD) ".[$(EXTRAS)]"
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses 8 -m slow

# The address and undefined-behaviour sanitizers, on the C++ sources in a separate build, with the values
# that break kernels, and then on the device code on the CPU.
SANITIZED_TESTS = cayley/test_cayley_inverse.py cayley/test_cayley_numbers.py cayley/test_cayley_paths.py exponential/test_exponential.py \
  householder/test_householder.py prune/test_prune.py prune/test_prune_packing.py shared/test_fuzz.py shared/test_values.py triangular/test_paths.py
sanitize: tools
	$(BUILD) ".[test]"
	FASTPARAM_SANITIZE=1 FASTPARAM_BUILD=cpu $(PY) setup.py -q build --build-lib build/sanitized
	python=$$($(PY) -c "import sys; print(sys.executable)") && cd build/sanitized && OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	  $$python -m pytest -q -n auto --maxprocesses 8 -c ../../pyproject.toml $(SANITIZED_TESTS:%=../../tests/%)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses 8 -m sanitize

# Trainers, and the test suites of packages whose maps ours replace, in a separate environment.
clients:
	TORCH="$(TORCH)" $(PYTHON) tests/clients/run.py

bench: tools
	$(BUILD) ".[bench,rivals]"
	$(PY) -m pytest -q benchmarks --save-results

# Installs nothing: it works offline and in place, and says what is missing.
gpu:
	@$(or $(shell command -v $(PY)),$(PYTHON)) benchmarks/gpu/gpu.py

lint: tools
	$(BUILD) ".[lint]"
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(dir $(shell command -v $(PY)))clang-format --dry-run --Werror

# The site, in build/docs/html. A warning is an error.
docs: tools
	$(BUILD) ".[docs]"
	$(PY) -m sphinx -q -W --keep-going -b html docs build/docs/html

# The C++ library: built, tested, installed, and used by a separate program.
cmake: tools
	cmake -S . -B build/cmake -DCMAKE_BUILD_TYPE=$(CMAKE_BUILD) -DCMAKE_PREFIX_PATH="$$($(PY) -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	cmake --build build/cmake --parallel
	ctest --test-dir build/cmake --output-on-failure
	cmake --install build/cmake --prefix build/installed
	cmake -S tests/cpp -B build/consumer -DCMAKE_PREFIX_PATH="$$($(PY) -c 'import torch; print(torch.utils.cmake_prefix_path)');$(CURDIR)/build/installed"
	cmake --build build/consumer
	build/consumer/smoke

clean:
	rm -rf build dist *.egg-info fastparam/*.so fastparam/_built.py
