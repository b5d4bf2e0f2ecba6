"""Alembic runs this module to migrate the database whose URL `shop.migrations` passes."""

from howdah.alembic import run_migrations
from shop.ledger.triggers import SQL_FOLDER
from shop.settings import Settings
from shop.tables import Base

run_migrations(Base.metadata, url=Settings().owner_database_url, sql=SQL_FOLDER)
