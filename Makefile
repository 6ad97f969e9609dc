# Everything here works on a clean machine with Python 3.11 or newer, make and PyPI.
#
#   make setup    .venv with the exact versions of constraints.txt
#   make test     setup, lint and all tests
#   make test-rabbitmq   tests with RabbitMQ as the broker, which it installs where there is none (Debian)
#   make test-gpu   tests on this machine's NVIDIA device (with torch in .venv, where it is installed)
#   make lint     the static checks alone
#   make format   let ruff rewrite the code
#   make demo     the example of README.md, from nothing to its summary
#   make bench    this project beside stock Celery and its peers: figures, not tests (BENCH="--rounds 1", see --help)
#   make chaos    faults under load: what was lost, what ran twice (CHAOS="--seed 7 --tasks 500", see --help)
#   make walk     a random walk of a fleet: workers, hosts, orders, versions (WALK="--seed 7 --minutes 10", see --help)
#   make lock     resolve the newest versions into constraints.txt (with the oldest supported Python)
#   make clean    remove what these commands made

.DEFAULT_GOAL := test
.PHONY: setup test test-rabbitmq test-gpu lint lint-pyright lint-others format demo bench chaos walk lock clean

# A name on PATH is not enough: a version manager's shim may stand for a version that is not installed, and some
# systems ship Python without venv.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$python; break; fi; done)

BIN := .venv/bin
STAMP := .venv/.installed

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with the venv module is on PATH; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: setup lint
	$(BIN)/python -m pytest -n 4 --dist worksteal tests --ignore=tests/benchmarks --ignore=tests/chaos --ignore=tests/rabbitmq --ignore=tests/gpu

test-rabbitmq: setup
	tests/rabbitmq/install
	$(BIN)/python -m pytest tests/rabbitmq

test-gpu: setup
	$(BIN)/python -m pytest tests/gpu

lint: setup
	$(MAKE) --no-print-directory -j 2 lint-pyright lint-others

lint-pyright: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

lint-others: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: setup
	$(BIN)/python examples/digits/demo.py

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python -m tests.benchmarks.core
	$(BIN)/python -m tests.benchmarks.compare $(BENCH)

chaos: setup
	$(BIN)/python -m tests.chaos $(CHAOS)

walk: setup
	$(BIN)/python -m tests.chaos.walk $(WALK)

lock:
	rm -rf .venv-lock
	python3.11 -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade setuptools '.[dev,bench]'
	.venv-lock/bin/python -m pip freeze --all --exclude pip --exclude flyte-celery > .venv-lock/versions
	{ sed '/^[^#]/,$$d' constraints.txt; cat .venv-lock/versions; } > .venv-lock/constraints.txt
	mv .venv-lock/constraints.txt constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-lock .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
