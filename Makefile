# Every target sets up what it needs in .venv first; nothing outside the project is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all lab lint benchmark docs gallery audit clean

demo: $(VENV)/.user
	$(BIN)/massrecon demo --out results/demo

lab: $(VENV)/.user
	# on the sources themselves, where edits can be committed
	$(BIN)/jupyter lab --ip=127.0.0.1 --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks/00_start.ipynb

test: $(VENV)/.dev
	# one thread a process: two processes with two threads each would wait for one another
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# the table of the performance page; with a GPU  make benchmark DEVICE=cuda
# ONLY="store scan" measures these again; the other benchmarks are of physics and need events
DEVICE := cpu
benchmark: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/everything.py --device $(DEVICE) $(ONLY)

# figures and quick tutorials are run first and kept, a few minutes; ALL=1 runs every tutorial,
# which takes about half an hour; the site needs no network: open results/docs/index.html
docs: $(VENV)/.user $(VENV)/.docs
	OMP_NUM_THREADS=1 $(BIN)/python docs/prepare.py $(if $(ALL),--all)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file docs/mkdocs.yml
	@echo "Open results/docs/index.html"

# new pictures of all explorers for the site, from a real browser
gallery: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/browser/test_explorers.py
	for file in docs/pages/gallery/*.png; do cp results/browser/$$(basename $$file) $$file; done

# asks a database on the network for known vulnerabilities of the pinned versions
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:
	rm -rf $(VENV) results .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and 'massrecon needs Python 3.11 to 3.13: run  make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: $(BIN)/python pyproject.toml constraints.txt
	@echo "Setting up $(VENV): two to three minutes the first time."
	$(PIP) --editable '.[mc,files,jupyter]'
	touch $@

# groups need pip 25.1, which a fresh virtual environment may not have
$(VENV)/.dev: $(VENV)/.user
	$(PIP) --upgrade pip
	$(PIP) --group dev
	touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --upgrade pip
	$(PIP) --group docs
	touch $@
