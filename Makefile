# PWS_NO_VENV=1 uses the active environment instead of .venv.
# .venv/pretrain is .venv with mmpretrain besides; an active environment is left as it
# is, and without mmpretrain the tests of the classification configs skip.
ifeq ($(PWS_NO_VENV),1)
PY := python
PRETRAIN_PY := python
else
PY := .venv/bin/python
PRETRAIN_PY := .venv/pretrain/bin/python
PRETRAIN := --pretrain
export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif

# The quick tests run on as many cores; the slow ones use several by themselves.
JOBS := auto
PARALLEL := -n $(JOBS) --maxprocesses 8 --dist loadfile

.PHONY: help install demo test test-quick test-stacks lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

install: ## everything that is needed, into .venv
	@tools/install.sh

demo: install ## train and test a small norm-free detector
	PYTHON=python tools/demo.sh

test: test-quick ## all tests: the quick ones first, then the programs from end to end
	$(PY) -m pytest tests -m slow --durations 25

test-quick: ## the quick tests only
	@tools/install.sh $(PRETRAIN)
	$(PRETRAIN_PY) -m pytest tests -m "not slow" $(PARALLEL) --durations 25

test-stacks: ## the unit tests on torch 2.1, 2.13, the newest, and MMDetection's forks
	@tools/test_stacks.sh

lint: install ## style of the code
	ruff check .

clean: ## remove what builds and the demo leave behind
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -rf work_dirs/demo data/digits
	find configs pws_mmdet tests tools -name __pycache__ -prune -exec rm -rf {} +
