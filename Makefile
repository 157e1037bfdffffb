# `make demo` and `make test` work on a fresh machine with Python 3.11+ and make.
# Another build of torch:  make TORCH='torch==2.13.0 --index-url ...'

VENV  ?= .venv
TORCH ?= torch==2.13.0
JOBS  ?= 2
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
TRITON := $(VENV)/.triton

# Each test worker gets one torch thread: two workers of one thread beat one worker of two at these sizes.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test test-all check fmt bench wheel venv clean help

help:
	@echo "make demo       draw HOPE's level graph, train it on real text (about 5 minutes on 2 cores), write out/hope/"
	@echo "make test       run the tests"
	@echo "make test-all   run the tests, slow ones too"
	@echo "make check      lint, format and types"
	@echo "make bench      time all architectures, peers and decoding (docs/speed.md)"
	@echo "make wheel      build dist/nestflow-*.whl"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@py=""; for p in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then py=$$p; break; fi; \
	done; \
	if [ -z "$$py" ]; then echo "nestflow needs Python 3.11 or later with its venv module (name one: make PYTHON=/path/to/python3.12)" >&2; exit 1; fi; \
	test -x $(BIN)/python || $$py -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Triton for the tests of kernels, interpreted on a CPU (285 MB); without it they are skipped. A CUDA build of torch has it.
$(TRITON): $(STAMP)
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[kernels]' \
	  || echo "no Triton here: the tests of its kernels are skipped" >&2
	@touch $@

# Threads that spin while they wait for a busy core would cost more than they bring.
demo: $(STAMP)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m nestflow.train.demo --out out/hope $(DEMO_ARGS)

test: $(TRITON)
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS) -m "not slow" $(PYTEST_ARGS)

test-all: $(TRITON)
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS) $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

wheel: $(STAMP)
	rm -rf dist build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w dist .

clean:
	rm -rf out dist build .pytest_cache .hypothesis .ruff_cache
