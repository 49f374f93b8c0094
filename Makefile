# Two commands on a fresh machine: `make demo` and `make test`. Both need only Python 3.10 or newer (with venv) and
# make. Another interpreter: make test PYTHON=python3.12. Part of the tests: make test PYTEST_ARGS="-k frames".
# Without an NVIDIA GPU: make install CPU=1 (or make test CPU=1 ...) takes PyTorch without CUDA, gigabytes less.
# Two test files run at once; one test at a time: make test PYTEST_ARGS="-n 0".

PYTHON ?= python3
PYTEST_ARGS ?=
CPU ?=
TORCH_CPU ?= https://download.pytorch.org/whl/cpu
APP_ARGS ?=
INSTALLED = .venv/installed-requirements.txt

.PHONY: help install demo app lint test clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     the whole way from clips to an evaluated model, on made-up clips, in demo/"
	@echo "make app      a page on this computer to drop clips on, scored by the model that comes with the suite"
	@echo "make test     the test suite, after make lint"
	@echo "make lint     style and likely mistakes, by ruff (pyproject.toml)"
	@echo "make install  only what these need first: the environment .venv; CPU=1: with a PyTorch without CUDA"
	@echo "make clean    delete what the demo and the tests made; .venv stays (rm -rf .venv for that)"

# The list of what is installed is written last. Without it .venv is half-made (or its update was interrupted) and is
# made anew; with another list than today's the packages are brought up to date in place. pip prefers 2.15.0+cpu, as
# PyTorch's own index has it, to 2.15.0. A .venv with it keeps it. CPU=1 is not the default if no driver is found:
# a cluster's first machine often has no GPU, while those that share its .venv have.
install:
	@if cat requirements.txt requirements-app.txt requirements-dev.txt | cmp -s - $(INSTALLED) && .venv/bin/python -c ""; then exit 0; fi; \
	set -e; \
	if ! command -v "$(PYTHON)" > /dev/null; then \
		echo "make: no $(PYTHON) found: install Python 3.10 or newer or name yours: make PYTHON=/path/to/it" >&2; \
		exit 2; fi; \
	if ! "$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 10))"; then \
		echo "make: $(PYTHON) is older than Python 3.10: name a newer one: make PYTHON=python3.12" >&2; exit 2; fi; \
	cpu="$(CPU)"; case "$$(uname) $$(echo .venv/lib/python3*/site-packages/torch-*+cpu.dist-info)" in \
		Darwin*) cpu= ;; *"*"*) ;; *) cpu=1 ;; esac; \
	if [ -e $(INSTALLED) ] && .venv/bin/python -c ""; then rm $(INSTALLED); else "$(PYTHON)" -m venv --clear .venv; fi; \
	index=; hint=; \
	if [ -z "$$cpu" ]; then \
		if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi > /dev/null; then \
			hint="; no NVIDIA driver found: make install CPU=1 takes PyTorch without CUDA, gigabytes less"; fi; \
	elif .venv/bin/python -m pip index versions torch --index-url $(TORCH_CPU) --retries 0 --timeout 10 2>&1 | grep -q "+cpu"; then \
		index="--extra-index-url $(TORCH_CPU)"; hint="; without CUDA, from $(TORCH_CPU)"; \
	else hint="; $(TORCH_CPU) cannot be reached, so it is the one with CUDA"; fi; \
	echo "Installing into .venv (PyTorch is large: this takes some minutes$$hint)"; \
	.venv/bin/python -m pip install --disable-pip-version-check $$index -r requirements.txt -r requirements-dev.txt; \
	cat requirements.txt requirements-app.txt requirements-dev.txt > $(INSTALLED).part; \
	mv $(INSTALLED).part $(INSTALLED)

demo: install
	@PATH="$(CURDIR)/.venv/bin:$$PATH" sh demo/run.sh

app: install
	@.venv/bin/python app.py $(APP_ARGS)

lint: install
	@.venv/bin/python -m ruff check .

test: lint
	@.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(PYTEST_ARGS)

clean:
	rm -rf demo/data demo/runs .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
