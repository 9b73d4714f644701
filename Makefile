# make demo, make test: each works on a machine that has python3.11, make and pip.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
LOCK := requirements-dev.lock
# A new lock, new metadata or another place of the checkout sets up anew; nothing else does.
KEY := $(shell { cat $(LOCK) pyproject.toml; pwd; } | cksum | cut -d ' ' -f 1)
STAMP := .venv/.ready-$(KEY)
OUTPUT ?=
# Tests that mostly wait for processes of their own: they run beside the others, on the second core.
BESIDE := tests/test_packaging.py tests/e2e/flower tests/serving

.PHONY: announce setup demo demo-serve test test-browser test-oldest check bench lock clean

setup: announce $(STAMP)
	@:

$(STAMP):
	@.ci/setup "$(PYTHON)" "$(LOCK)"
	@rm -f .venv/.ready-* && touch $@

# Setting up is silent; who waits is told why.
announce:
	@test -e $(STAMP) || echo "installing into .venv: about 2 GB and a few minutes, this once"

demo: setup
	@$(BIN)/fedtandem demo $(if $(OUTPUT),--output $(OUTPUT))

# Device, edge and cloud on loopback with the embedded models; Ctrl-C ends it.
demo-serve: setup
	@$(BIN)/fedtandem serve all

test: setup
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy --no-error-summary
	@log=$$(mktemp); trap 'rm -f $$log; kill $$beside 2>/dev/null || :' EXIT; \
	$(BIN)/python -m pytest -q -p no:cacheprovider -m "not browser" $(BESIDE) >$$log 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest -q -m "not browser" $(BESIDE:%=--ignore=%); code=$$?; \
	wait $$beside || { cat $$log; exit 1; }; exit $$code

# The device's page in Chromium; installs what is missing where it may, says SKIPPED where it cannot.
test-browser: setup
	@.ci/browser

# The fast tests with the lowest versions that pyproject.toml allows.
test-oldest:
	@.ci/oldest "$(PYTHON)" "$(LOCK)"

check: setup
	@$(BIN)/ruff format --check --quiet || { echo "run: $(BIN)/ruff format"; exit 1; }
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m pytest -q tests/test_import_arrows.py tests/test_readme.py
	@$(BIN)/python -m pytest -q -m "not browser"

bench: setup
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file; done

# What is installed in .venv now, as the versions for development and CI.
lock: setup
	@{ echo "# Versions for development and CI; users get the lower bounds of pyproject.toml. Made by: make lock"; \
	   $(BIN)/python -m pip freeze --exclude-editable --exclude fedtandem | sed 's/+cpu$$//' | grep -v ' @ '; } > $(LOCK).new
	@mv $(LOCK).new $(LOCK)

clean:
	rm -rf .venv .venv-oldest .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
