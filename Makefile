# Every target sets itself up: a virtual environment in .venv with the versions of requirements.lock.
# PYTHON: the interpreter to build it from. VENV: its folder. PIP_ARGS, PYTEST_ARGS: more options for pip and pytest.
# TEST_WORKERS: processes that `make test` and `make test-faults` run tests in, whole files at a time.
PYTHON ?= python3.11
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
RUNS ?= runs
PORT ?= 5000

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
SHELL := /bin/bash
# Packages are compiled when they are first imported; where that may not be kept, every worker compiles torch anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-faults test-long check ui bench-data clean lock

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## create the virtual environment

# Done again when the project's requirements or the lock change.
$(INSTALLED): pyproject.toml requirements.lock
	@python=$$(command -v $(PYTHON) || { test "$(origin PYTHON)" = file && command -v python3; }) || { echo "error: there is no $(PYTHON) here; install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $$python is $$("$$python" -V 2>&1); Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	test -x $(PY) || { echo "creating $(VENV) with $$("$$python" -V)"; "$$python" -m venv $(VENV); }
	@echo "installing requirements.lock into $(VENV)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_ARGS) -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -e .
	@touch $@

demo: $(INSTALLED)  ## the generated sample from text to report: prepare, train, evaluate
	@echo "== 1/3 prepare: generate the sample and tokenize it"
	@$(PY) -m data_pipeline.prepare --config sample
	@echo "== 2/3 train: two workers, DeepSpeed ZeRO-2, bf16"
	@$(PY) -m urg.train --config sample --storage $(RUNS)
	@echo "== 3/3 evaluate: every system on the test split"
	@$(PY) -m urg.evaluate --model $(RUNS)/sample/model --shards data/sample --output $(RUNS)/sample/evaluation --num_beams 1
	@echo "to go on by hand, in this shell: source $(VENV)/bin/activate"

# pytest's own exit code is kept beside the environment: make would turn it into 2.
test: $(INSTALLED)  ## all tests but benchmarks and the long form of fault tests
	@$(PY) -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not benchmark and not exhaustive" $(PYTEST_ARGS); code=$$?; echo $$code > $(VENV)/.pytest-exit; exit $$code

# Files stay whole, and those that start nodes run one after another (tests/faults/conftest.py); first, as they take longest.
test-faults: $(INSTALLED)  ## every fault test, the long ones too: kills, damage, full disks (half an hour on two cores)
	$(PY) -m pytest -n $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder -m faults $(PYTEST_ARGS) \
		tests/faults $(filter-out %__pycache__/,$(wildcard tests/*/))

test-long: $(INSTALLED)  ## what both of them leave out: other long forms, such as each ZeRO stage or a sweep of 20 trials (hours)
	$(PY) -m pytest -m "exhaustive and not faults" $(PYTEST_ARGS)

check: $(INSTALLED)  ## format, lint, types, fast tests
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q -m "not slow and not benchmark" $(PYTEST_ARGS)

ui: $(INSTALLED)  ## MLflow's UI on http://127.0.0.1:5000 (PORT=…)
	@echo "in half a minute: http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning (Ctrl-C ends it)"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(PY) -m mlflow ui --backend-store-uri sqlite:///$(abspath $(RUNS)/mlflow.db) --host 127.0.0.1 --port $(PORT) --workers 1

bench-data: $(INSTALLED)  ## time and memory of preparing 110,000 rows (half an hour)
	$(PY) -m data_pipeline.benchmark

lock: $(INSTALLED)  ## write requirements.lock from what is installed
	@$(PY) .ci/lock.py > requirements.lock.new && mv requirements.lock.new requirements.lock
	@touch $(INSTALLED)

clean:  ## remove caches and build files; keeps the environment, data and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
