# Each command needs only Python 3.11+ and make: where uv is missing it is put into .uv/, a virtual environment of its own.
PORT ?= 8000
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --locked

.PHONY: serve test check bench format test-matrix test-wheel

serve: $(UV)
	@$(RUN) --no-dev shop serve --port $(PORT)

test: $(UV)
	$(RUN) pytest -n 2 --cov --cov-report=term $(ARGS)

check: $(UV)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) shop migrate --check

format: $(UV)
	$(RUN) ruff check --fix
	$(RUN) ruff format

.uv/bin/uv:
	@echo "uv not found: putting it into .uv/"
	@python3 -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv
