# Every target sets itself up: .venv is made on the first run, and brought up to date when
# pyproject.toml or constraints.txt has changed.
#
#   make PYTHON=python3.12 ...     another interpreter for .venv
#   make quickstart ARGS="--help"  arguments for the command

PYTHON ?= python3
ARGS ?=
FAULTS ?= 1

VENV := .venv
BIN := $(VENV)/bin
EXTRAS := cpu,train,export,openvino,tensorrt-rtx,verify,align,lexicon,plots,serve,ray,benchmarks,demo,dev
STAMP := $(VENV)/.installed
TOOL_CACHES := .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help quickstart test lint faults fuzz fuzz-api soak mutants test-gpu bench-gpu triton-env clean

help:
	@echo "make quickstart  train, export and time the demonstration; ARGS=... are passed on"
	@echo "make test        style, types, import rules and tests"
	@echo "make lint        style, types and import rules only"
	@echo "make faults      kill every kind of writer at its system calls (needs strace); FAULTS=9: each ninth"
	@echo "make fuzz        100,000 damaged bundles (half an hour); ARGS=--fuzz-case=N repeats one"
	@echo "make fuzz-api    some 20,000 requests that schemathesis makes up, to every route; API_EXAMPLES=50: 700"
	@echo "make soak        memory and answers over many texts; ARGS='BUNDLE --backend openvino'"
	@echo "make mutants     which planted faults the tests of the core miss (an hour)"
	@echo "make test-gpu    the tests that need an NVIDIA GPU"
	@echo "make bench-gpu   the chain against the dense model on a GPU: docs/performance-gpu.md"
	@echo "make triton-env  NVIDIA's Triton server for its tests, in build/triton-env"
	@echo "make clean       remove .venv, caches and build outputs"

quickstart: $(STAMP)
	@$(BIN)/trbert-deploy quickstart $(ARGS)

test: lint
	@echo "== pytest"
	@$(BIN)/pytest -n auto --dist loadfile $(ARGS)

lint: $(STAMP)
	@echo "== ruff check"
	@$(BIN)/ruff check .
	@echo "== ruff format"
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== import rules"
	@$(BIN)/lint-imports

faults: $(STAMP)
	@FAULTS=$(FAULTS) $(BIN)/pytest -n 0 -q -s tests/faults $(ARGS)

fuzz: ARGS = --fuzz-cases=100000
fuzz: $(STAMP)
	@$(BIN)/pytest -n 0 -q -s tests/fuzz $(ARGS)

fuzz-api: API_EXAMPLES ?= 1400
fuzz-api: API_SEED ?= 0
fuzz-api: $(STAMP)
	@API_EXAMPLES=$(API_EXAMPLES) API_SEED=$(API_SEED) $(BIN)/pytest -n 0 -q -s tests/serving/test_apis.py -k description $(ARGS)

soak: $(STAMP)
	@$(BIN)/python benchmarks/soak.py $(ARGS)

mutants: $(STAMP)
	@$(BIN)/python -m pip install -q --disable-pip-version-check "mutmut>=3.8"
	@TINY_BUNDLE=$(CURDIR)/build/tiny_bundle $(BIN)/mutmut run $(ARGS) && $(BIN)/mutmut results

test-gpu: $(STAMP)
	@$(BIN)/pytest -n 0 -m gpu $(ARGS)

bench-gpu: $(STAMP)
	@$(BIN)/python benchmarks/gpu.py --output docs/performance-gpu.md $(ARGS)

# An environment of its own: the wheel wants numpy 1.
triton-env:
	@$(PYTHON) -m venv --clear build/triton-env
	@build/triton-env/bin/python -m pip install -q --disable-pip-version-check "nvidia-pytriton==0.7.0"

clean:
	rm -rf $(VENV) $(TOOL_CACHES) mutants build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip shows its progress to a person and keeps quiet in a log.
$(STAMP): pyproject.toml constraints.txt
	@fail() { echo "error: $$1" >&2; exit 1; }; \
	command -v "$(PYTHON)" >/dev/null \
	|| fail "$(PYTHON) is not on the PATH: install Python 3.11 or newer, or name one with make PYTHON=..."; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| fail "$$("$(PYTHON)" --version 2>&1) is too old: expected 3.11 or newer; name one with make PYTHON=..."; \
	"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
	|| fail "$(PYTHON) cannot make virtual environments: install its venv package (python3-venv on Debian and Ubuntu)"; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV) \
	|| fail "$(PYTHON) could not make $(VENV): see its message above"; \
	echo "== install into $(VENV) (some minutes the first time)"; \
	$(BIN)/python -m pip install $$([ -t 1 ] || echo -qq) --disable-pip-version-check \
		-c constraints.txt -e '.[$(EXTRAS)]' \
	|| fail "pip could not install the packages: see its message above, then run make again"
	@touch $@
