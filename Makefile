# make demo   install, then train, evaluate and report the quickstart (about 6 minutes on 2 CPU cores)
# make test   install with the development tools, then run the test suite (under 10 minutes)
# make peers  install the peer library too, and compare our losses with its own
# make lint   style (ruff) and types (pyright)
# make mutants  put the seeded bugs of tests/mutants/ into a copy, one by one, and write docs/mutants.md (about an hour)
# make bench  install the peers and measure speed and memory beside them on S (about 15 minutes; WORKLOADS="S M Q" for all)
# make docs-methods   write the generated parts of docs/methods.md anew (half a minute)

PYTHON := $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
VENV   := .venv
BIN    := $(VENV)/bin

# what `make bench` measures; BENCH="--ablate" or "--growth" for its other parts
WORKLOADS := S
BENCH     :=

# the test suite on every core, a file of tests at a time; WORKERS= for one process
WORKERS   := -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test peers lint slow mutants bench docs-methods clean

demo: $(VENV)/.installed
	$(BIN)/alignlab

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(WORKERS)

peers: $(VENV)/.installed-peers
	$(BIN)/python -m pytest tests/peers

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

mutants: $(VENV)/.installed-dev
	$(BIN)/python -m tests.mutants

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyright

bench: $(VENV)/.installed-peers $(VENV)/trl-1.12
	$(BIN)/python -m benchmarks --workloads "$(WORKLOADS)" $(BENCH)

docs-methods: $(VENV)/.installed
	$(BIN)/python docs/build_methods.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "alignlab needs Python 3.11, 3.12 or 3.13; found $$($(PYTHON) --version). Try: make PYTHON=/path/to/python3.11"; exit 3; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,peers]"
	@touch $@

# the last TRL with a PPO trainer, beside the installed one; without it PPO is measured alone
$(VENV)/trl-1.12: $(BIN)/python
	-$(BIN)/python -m pip install --quiet --no-deps --target $@ trl==1.12.0

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache
