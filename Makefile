# PYTHON: the environment that `bash train.sh --setup` creates, or your own (BBU_PYTHON).
PYTHON := $(or $(BBU_PYTHON),.venv/bin/python)

# CONFIG: the config that `make profile` profiles.
CONFIG := configs/demo.yaml

.PHONY: setup test lint demo bench profile

setup:
	@bash train.sh --setup

test: setup
	HF_HUB_OFFLINE=1 PYTHONPATH=src:. $(PYTHON) -m pytest -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

demo:
	bash train.sh configs/demo.yaml

bench: setup
	PYTHONPATH=src:. $(PYTHON) benchmarks/run_all.py

profile: setup
	PYTHONPATH=src:. $(PYTHON) -m bbu.cli profile $(CONFIG)
