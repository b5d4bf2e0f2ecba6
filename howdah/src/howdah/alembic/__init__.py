"""Migrations with Alembic: a short `env.py`, complete new migrations, and checks of locks and of the schema."""

from howdah.alembic.catalog import CatalogEntry, compare_catalogs, read_catalog
from howdah.alembic.environment import run_migrations
from howdah.alembic.history import CheckReport, Migrations, NewMigration
from howdah.alembic.linting import Finding
from howdah.alembic.operations import (
    add_constraint,
    create_index_concurrently,
    drop_index_concurrently,
    run_sql_files,
    set_not_null,
)
from howdah.alembic.revisions import RevisionState
from howdah.errors import MigrationBlocked

__all__ = [
    "CatalogEntry",
    "CheckReport",
    "Finding",
    "MigrationBlocked",
    "Migrations",
    "NewMigration",
    "RevisionState",
    "add_constraint",
    "compare_catalogs",
    "create_index_concurrently",
    "drop_index_concurrently",
    "read_catalog",
    "run_migrations",
    "run_sql_files",
    "set_not_null",
]
