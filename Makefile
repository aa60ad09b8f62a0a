# Install, run, test and ship. `make help` tells the targets. Everything is installed into .venv and nowhere else.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
IMAGE := lstm-serve

# Can this interpreter make a virtual environment for us? (Debian keeps ensurepip in a package of its own.)
USABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c '$(USABLE)' 2>/dev/null && echo $$python && break; done)

.PHONY: help serve test check faults train-shipped bench soak image clean
.DEFAULT_GOAL := help

help: ## Tell the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'PYTHON=... chooses the interpreter of .venv, ARGS=... is handed on: make serve ARGS="--port 9000"'

serve: $(VENV)/server ## Serve the shipped models on 127.0.0.1:8000 (installs the server on first use, without torch)
	@$(BIN)/lstm-serve serve $(ARGS)

test: $(VENV)/everything ## Run all tests and hold the coverage gate; with ARGS="-k name", only those, without the gate
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -ra -n auto --maxprocesses 4 --dist loadfile --cov --junitxml=build/junit.xml
	@test "$$CI" != true || grep -q ' skipped="0"' build/junit.xml || \
		{ echo 'make test: in CI no test may be skipped or expected to fail; the summary above names them' >&2; exit 1; }
endif

check: $(VENV)/everything ## Lint, formatting, types, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/python -m pytest -q tests/architecture

faults: $(VENV)/everything ## Kill, stop, cut and fill up what the service runs on, and judge what clients saw (FAULTS=short: a minute)
	$(BIN)/python -m tests.faults $(or $(FAULTS),full) $(ARGS)

train-shipped: $(VENV)/everything ## Train both shipped models from scratch and export them into model_repository/
	rm -rf runs/shipped
	$(BIN)/lstm-serve train language --hidden 256 --dropout 0.4 --epochs 30 --out runs/shipped/language
	$(BIN)/lstm-serve export runs/shipped/language --to model_repository/language/1/ --force
	$(BIN)/lstm-serve train forecast --sine --epochs 400 --out runs/shipped/sine
	$(BIN)/lstm-serve export runs/shipped/sine --to model_repository/sine/1/ --force

bench: $(VENV)/server ## Steps per second, latency and CPU per step at 1, 16, 64 and 256 sessions
	$(BIN)/python -m bench.shipped $(ARGS)

soak: $(VENV)/everything ## Load a server for an hour with sessions that come and go, and hold what it needs flat (SOAK_MINUTES=60)
	$(BIN)/python -m bench.soak --minutes $(or $(SOAK_MINUTES),60) --out build/soak.json --plot build/soak.png $(ARGS)

image: ## Build the container image
	docker build -t $(IMAGE) --build-arg REVISION=$$(git rev-parse --short HEAD 2>/dev/null || echo unknown) $(ARGS) .

clean: ## Remove what can be made again; trainings (runs/) and sessions (data/) stay
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps: pip runs again only where the versions it would install may have changed. The install is editable, so that
# what is served is what is checked out; setuptools is installed by us, as a build of its own would fetch any version.
$(BIN)/python:
	@"$(PYTHON)" -c '$(USABLE)' 2>/dev/null || { echo 'lstm-serve needs Python 3.11 or newer with venv:' \
		'apt install python3-venv, or name an interpreter: make PYTHON=/path/to/python3' >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)

$(VENV)/server: pyproject.toml constraints.txt $(BIN)/python
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/everything: $(VENV)/server
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[train,dev]'
	@touch $@
