# Each command needs only Python 3.11+ and make. If uv isn't installed, it is installed into the environment .uv/.
PORT ?= 8000
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := $(UV) run --locked
PYTEST := $(RUN) pytest -n 2 --dist worksteal

# Container images often set this variable. Then every process compiles every module, which takes several seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: serve test coverage check check-types check-others docs format wheel bench bench-plot bench-docs soak fuzz audit test-matrix test-wheel clean

serve: $(UV)
	@$(UV) run --locked --quiet --no-dev shop serve --port $(PORT)

# The packages run one after the other, because each has its own schema. ARGS goes to pytest: make test ARGS="-k transfers".
# With ARGS a package may have no test that ARGS selects (exit code 5 of pytest).
ALLOW_NO_TESTS := $(if $(ARGS),|| [ $$? = 5 ])

test: $(UV)
	$(PYTEST) howdah/tests $(ARGS) $(ALLOW_NO_TESTS)
	$(PYTEST) shop/tests $(ARGS) $(ALLOW_NO_TESTS)

# The same tests with coverage, which takes more than 1.5 times as long. Prints the files below 95 % and the total.
coverage: $(UV)
	@rm -f .coverage
	$(PYTEST) --cov --cov-append --cov-report= howdah/tests
	$(PYTEST) --cov --cov-append --cov-report= shop/tests
	$(RUN) coverage report | awk 'NR == 1 || ($$6 ~ /%/ && $$6 + 0 < 95) || $$1 == "TOTAL"'

# mypy takes most of the time and uses one core, so the other checks run at the same time. All packages are installed
# first, because neither target may change the environment while the other one runs.
check: $(UV)
	@$(UV) sync --quiet --locked --inexact --group docs
	@$(MAKE) --no-print-directory --jobs=2 check-types check-others

check-types: $(UV)
	$(RUN) mypy

check-others: $(UV)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) lint-imports
	$(RUN) shop migrate --check
	$(RUN) --group docs python tools/build_docs.py

# The documentation site in build/site. `make check` builds it, too, because the build checks every link.
docs: $(UV)
	$(RUN) --group docs python tools/build_docs.py

format: $(UV)
	$(RUN) ruff check --fix
	$(RUN) ruff format

# The library's wheel, in dist/.
wheel: $(UV)
	@$(UV) build --quiet --wheel --package howdah --out-dir dist
	@ls $(CURDIR)/dist/howdah-*.whl

# Every speed claim, compared with its peers: make bench ONLY=bulk-create,pages ARGS="--rounds 3 --json figures.json"
# A first look at everything, in a few minutes: make bench ARGS=--quick
bench: $(UV)
	$(RUN) --group bench python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(ARGS)

# The plot of throughput against size, and the tables in the README and docs/benchmarks.md, from benchmarks/results/.
bench-plot: $(UV)
	$(RUN) --group bench python -m benchmarks.plot $(ARGS)

bench-docs: $(UV)
	$(RUN) --group bench python -m benchmarks.docs $(ARGS)

# SQLAlchemy 2.0 and 2.1, PostgreSQL 15, 16 and 18, Python 3.11 to 3.13, as far as they are installed.
test-matrix: $(UV)
	UV=$(UV) tools/test-matrix

# Long runs: all faults of a bad day, request batching under cancellations and lost backends, the ledger under SIGKILL,
# opposed batches and transfers, `shop check` on ten million entries, stops under load, the slow tests, and property
# tests with random examples. Failing examples are stored in soak/examples/.
soak: $(UV)
	$(RUN) python -m soak.bad_day --seconds 300
	$(RUN) python -m soak.coalescer --seconds 300
	$(RUN) python -m soak.crash_ledger --kills 50
	$(RUN) python -m soak.opposed_batches --seconds 60
	$(RUN) python -m soak.opposed_transfers --seconds 30
	$(RUN) python -m soak.check_at_scale
	$(RUN) python -m soak.stops --stops 20
	$(RUN) pytest -m "slow or hypothesis" --hypothesis-profile=random --timeout=1800 howdah/tests
	$(RUN) pytest -m "slow or hypothesis" --hypothesis-profile=random --timeout=1800 shop/tests

# Random requests that are compared with the OpenAPI description, on a PostgreSQL of its own, for some minutes. The
# command prints its seed, and curl commands for failures: make fuzz ARGS="--seed 7 --examples 20"
fuzz: $(UV)
	$(RUN) python -m soak.fuzz $(ARGS)

# Known vulnerabilities of all locked packages, which needs PyPI's advisories, and secrets in the files of the repository.
audit: $(UV)
	$(RUN) --group audit python tools/audit.py $(ARGS)

# The library's wheel, installed alone, passes the library's tests.
test-wheel: $(UV)
	UV=$(UV) tools/test-wheel

clean:
	rm -rf .uv .venv .venv-* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

.uv/bin/uv:
	@echo "uv isn't installed: putting it into .uv/"
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed"; exit 1; }
	@python3 -m venv .uv || { rm -rf .uv; echo "python3 -m venv failed: install your system's python3-venv, or uv"; exit 1; }
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv
