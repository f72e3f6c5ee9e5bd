# PWS_NO_VENV=1 uses the active environment instead of .venv.
# .venv/pretrain has mmpretrain and all that .venv has. Nothing is added to an active
# environment: if it lacks mmpretrain, the tests of the classification configs skip.
ifeq ($(PWS_NO_VENV),1)
PY := python
PRETRAIN_PY := python
else
PY := .venv/bin/python
PRETRAIN_PY := .venv/pretrain/bin/python
PRETRAIN := --pretrain
export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif

# Material for MkDocs warns of MkDocs 2, which the extra `docs` does not take.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs

# Processes of the quick tests. Most slow tests use several cores by themselves.
JOBS := auto
PARALLEL := -n $(JOBS) --maxprocesses 8 --dist loadfile
PARALLEL_SLOW := -n $(JOBS) --maxprocesses 2 --dist worksteal

.PHONY: help install demo test test-quick test-stacks lint docs docs-serve
.PHONY: docker docker-cuda clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

install: ## install all that is needed into .venv
	@tools/install.sh

demo: install ## train and test a small norm-free detector
	PYTHON=python tools/demo.sh

test: test-quick ## all tests: the quick ones first, then the programs from end to end
	$(PY) -m pytest tests -m slow $(PARALLEL_SLOW) --durations 25

test-quick: ## the quick tests only
	@tools/install.sh $(PRETRAIN)
	$(PRETRAIN_PY) -m pytest tests -m "not slow" $(PARALLEL) --durations 25

test-stacks: ## the unit tests on torch 2.1, 2.13, the newest, and MMDetection's forks
	@tools/test_stacks.sh

lint: install ## style, format, spelling and types of the code
	ruff check .
	ruff format --check .
	codespell
	mypy

docs: install ## the documentation, into site/; a broken link or reference fails
	$(MKDOCS) build --strict

docs-serve: install ## show the documentation, and every change of a page
	$(MKDOCS) serve --livereload

# TORCH_INDEX: the package index of PyTorch's builds for the CPU
docker: ## an image for the CPU with all that is needed
	docker build -t pws_mmdet -f docker/Dockerfile --build-arg TORCH_INDEX=$(TORCH_INDEX) .

docker-cuda: ## the same image for CUDA
	docker build -t pws_mmdet:cuda -f docker/Dockerfile \
		--build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 \
		--build-arg FORCE_CUDA=1 .

clean: ## remove the files that builds and the demo leave behind
	rm -rf build dist site *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf work_dirs/demo data/digits
	find benchmarks configs pws_mmdet tests tools -name __pycache__ -prune -exec rm -rf {} +
