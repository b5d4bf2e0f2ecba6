"""The history of the schema, and the revision of a database.

The functions that need Alembic import it, so that an import of this module is fast.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from howdah import Database, InvalidStatement
from shop.ledger.triggers import SQL_FOLDER

if TYPE_CHECKING:
    from alembic.config import Config

_FOLDER: Final = Path(__file__).parent


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database's schema to `revision`.

    Blocks, and must not be called from a running event loop. Raises Alembic's `CommandError` if the database is at a
    revision that this version of Shop doesn't have.
    """
    from alembic import command
    from alembic.script.revision import ResolutionError
    from alembic.util.exc import CommandError

    try:
        command.upgrade(_config(url), revision)
    except CommandError as error:
        if not isinstance(error.__cause__, ResolutionError):
            raise
        raise CommandError(
            f"the database is at revision {error.__cause__.argument}, which this version of Shop doesn't have. Run the "
            "version that created it, or use a new database (for the embedded server a new SHOP_DATA_DIR)"
        ) from error


def downgrade(url: str, revision: str) -> None:
    """Take the schema back to `revision`; `base` is an empty database. Data of dropped tables and columns is lost."""
    from alembic import command

    command.downgrade(_config(url), revision)


def write_revision(url: str, message: str) -> Path:
    """Write the first version of a migration, and return its path.

    Alembic compares the models with the database at `url`, which must be at the newest revision. Each migration has a
    folder with copies of the .sql files that it changed. Files that differ from their newest copy are copied into the
    folder of the new migration.
    """
    from alembic import command
    from alembic.script import Script

    number = f"{int(head()) + 1:04d}"
    script = command.revision(_config(url), message, autogenerate=True, rev_id=number)
    assert isinstance(script, Script)
    migration = Path(script.path)
    frozen = {file.name: file.read_bytes() for file in sorted(migration.parent.glob("*/*.sql"))}
    for file in sorted(SQL_FOLDER.glob("*.sql")):
        if frozen.get(file.name) != file.read_bytes():
            migration.with_suffix("").mkdir(exist_ok=True)
            migration.with_suffix("").joinpath(file.name).write_bytes(file.read_bytes())
    return migration


@cache
def head() -> str:
    """The newest revision."""
    from alembic.script import ScriptDirectory

    found = ScriptDirectory.from_config(_config("")).get_current_head()
    assert found is not None
    return found


async def current(database: Database) -> str | None:
    """The revision of the database; None if it was never migrated."""
    async with database.session(read_only=True) as session:
        try:
            found: str | None = await session.scalar(text("SELECT version_num FROM alembic_version"))
        except InvalidStatement as error:
            if error.sqlstate == "42P01":  # no such table
                return None
            raise
        return found


async def find_revision_problem(database: Database) -> str | None:
    """The reason why the service isn't ready, if the database isn't at the newest revision. Otherwise None."""
    found = await current(database)
    return None if found == head() else f"the schema is at {found}, not at {head()}: run shop migrate"


def _config(url: str) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["url"] = url
    return config
