# `make demo` sets up .venv and runs the main job; `make test` sets up and passes the tests. Safe to repeat.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode is written as modules are imported: compiling all of torch and Ray takes longer than the rest. Where this
# variable forbids it, each of the many processes would compile what it imports of torch, about 2 s.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --no-compile --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: demo test test-containers test-commands pytest coverage check docs install clean

demo: .venv/.user
	$(BIN)/fedlab run dualadapt-digits

PYTEST := $(BIN)/python -m pytest -m 'not gpu and not paper and not container and not typed' --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 20

# Types are checked on one core, while the tests wait for one another's processes.
test: .venv/.developer
	@$(MAKE) --no-print-directory --jobs 2 check pytest

pytest: .venv/.developer
	$(PYTEST)

# The image, built and run by podman; some minutes the first time. FEDLAB_TORCH_INDEX: index of torch's builds for CPUs.
test-containers: .venv/.developer
	$(BIN)/python -m pytest -m container --numprocesses 0 -rs tests/test_containers.py

test-commands: .venv/.developer
	$(BIN)/python -m pytest -m 'engine or typed' --numprocesses 0 tests/test_typed_commands.py

# On its own: counting lines makes the tests half as slow again.
coverage: .venv/.developer
	$(PYTEST) --cov=fedlab --cov-report=term:skip-covered

check: .venv/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html; with search: $(BIN)/python -m http.server --directory build/site"

install: .venv/.user

# The stamps are newer than what they were made from, so a second call installs nothing.
.venv/.user: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setting up .venv (torch and Ray are large: some minutes the first time)"
	$(INSTALL) --editable .
	@touch $@

.venv/.developer: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setting up .venv for development (torch and Ray are large: some minutes the first time)"
	$(INSTALL) --editable '.[dev]'
	@touch $@ .venv/.user

.venv/.docs: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[docs]'
	@touch $@ .venv/.user

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build *.egg-info
