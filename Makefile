# PYTHON: the environment that `bash train.sh --setup` makes (or BBU_PYTHON, if you keep your own).
PYTHON := $(or $(BBU_PYTHON),.venv/bin/python)

.PHONY: setup test lint demo

setup:
	@bash train.sh --setup

test: setup
	HF_HUB_OFFLINE=1 PYTHONPATH=src:. $(PYTHON) -m pytest

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

demo:
	bash train.sh configs/demo.yaml
