# make run      run the example tasks with the reference solutions (needs Python 3.11-3.13 only)
# make test     everything that must hold: formatting, lint, types, tests (WORKERS=n at a time)
# make proof    the full counts (crash schedules, kill cases) that tests run as a sample
# make bench    the benchmarks, each against its floor or peer in the same run

PYTHON ?= python3
VENV ?= .venv
SANDBOX ?= local
AGENT ?= oracle
# Tests mostly wait, so there are two per core; more than four only crowd the daemon. A file's tests
# share its fixtures and a worker. Workers share the machine and the Docker daemon, so a test looks
# only for what is its own: by its home, its directory or a name that it made up.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 2 ? 2 : 4)))
BIN := $(VENV)/bin
export RAMIFY_CRIU ?= $(CURDIR)/$(VENV)/criu

.PHONY: run test proof bench check format images criu clean

run: $(VENV)/.installed
	$(BIN)/ramify run examples/tasks --agent $(AGENT) --sandbox $(SANDBOX) --skip-unsupported

test: check images criu
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

proof: $(VENV)/.dev images criu
	$(BIN)/python -m pytest -m proof --timeout 3600 -s

bench: $(VENV)/.installed images criu
	for each in benchmarks/*.py; do echo "== $$each"; $(BIN)/python $$each || exit 1; done

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Docker tests run on base images made here; without an engine they are skipped and say so.
images:
	@if docker version >/dev/null 2>&1; then dev/base-images; \
	else echo "no Docker engine: tests that need one will be skipped"; fi

# Live checkpoints need CRIU; without it those tests are skipped and say so.
criu: $(VENV)/.installed
	@dev/criu $(RAMIFY_CRIU) || echo "no CRIU: tests of live checkpoints will be skipped"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Ramify needs Python 3.11 to 3.13, not %d.%d; say which with PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist build
