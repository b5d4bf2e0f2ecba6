"""Every module can be imported without another one of Shop, and its mappers can be configured then."""

from __future__ import annotations

import pytest

from howdah_tests.support.lone_imports import find_modules, import_each_alone

# Alembic runs `env`, which needs the context of a migration.
MODULES = find_modules("shop", without=["shop.migrations.env"])
DEPENDENCIES = [
    "alembic",
    "howdah",
    "howdah.alembic",
    "howdah.embedded",
    "howdah.fastapi",
    "howdah.tenancy",
    "joserfc.jwe",
    "joserfc.jws",
    "polars",
    "prometheus_client",
    "pwdlib.hashers.argon2",
    "pydantic_settings",
    "pyotp",
    "structlog",
    "typer",
]


@pytest.mark.timeout(300)
def test_each_module_can_be_imported_alone() -> None:
    errors = import_each_alone(MODULES, first=DEPENDENCIES)
    assert errors.keys() == set(MODULES)
    failed = [f"{module}: {error}" for module, error in errors.items() if error is not None]
    assert not failed, "\n".join(failed)
