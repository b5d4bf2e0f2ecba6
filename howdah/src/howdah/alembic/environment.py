"""`run_migrations`, the body of `env.py`: connect, lock, and run Alembic's command."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import URL, Connection, MetaData, make_url

from howdah.alembic.locks import (
    LockSettings,
    Progress,
    describe_old_transactions,
    migration_lock,
    prepare_session,
    reject_pooler,
    retry_after_lock_timeout,
)
from howdah.alembic.operations import LOCK_TIMEOUT_OPTION
from howdah.alembic.rendering import render_item
from howdah.alembic.revisions import is_newer, store_applied, store_applied_if_missing
from howdah.alembic.running import run_blocking
from howdah.database import Database
from howdah.errors import DeadlockDetected, LockTimeout, MigrationBlocked

if TYPE_CHECKING:
    from alembic.operations.ops import MigrationScript
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

# The key of the `Call` in the attributes of Alembic's configuration.
CALL: Final = "howdah"

_logger = logging.getLogger("howdah.alembic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The arguments that `env.py` has passed to `run_migrations`."""

    metadata: MetaData
    url: str | URL | None
    sql: Path | None
    extensions: tuple[str, ...]
    role_statements: tuple[str, ...]
    unmanaged: tuple[str, ...]
    linted_after: str | None
    locks: LockSettings
    allow_pooler: bool
    options: Mapping[str, Any]

    @property
    def schemas(self) -> list[str] | None:
        """The schemas of the tables; '' is the current schema. None if all tables are in the current schema."""
        named = {table.schema or "" for table in self.metadata.tables.values()}
        return None if named <= {""} else sorted({"", *named})

    def is_managed(self, subject: str) -> bool:
        """Whether the migrations manage this table, function or type."""
        return not any(fnmatchcase(subject.rpartition(".")[2], pattern) for pattern in self.unmanaged)


@dataclass(slots=True)
class Call:
    """A call of `env.py` by this library, with its arguments and results.

    `run_migrations` finds it in the attributes of Alembic's configuration. With `is_question` it only stores the
    environment.
    """

    url: str | None = None
    is_question: bool = False
    environment: Environment | None = None
    applied: list[str] = field(default_factory=list)
    on_connect: Callable[[Connection], None] | None = None
    on_revision: Callable[[MigrationContext, Any, list[MigrationScript]], None] | None = None
    on_step: Callable[[str], None] | None = None


def run_migrations(
    metadata: MetaData,
    *,
    url: str | URL | None,
    sql: Path | None = None,
    extensions: Collection[str] = (),
    role_statements: Sequence[str] = (),
    unmanaged: Collection[str] = (),
    linted_after: str | None = None,
    wait: float = 300.0,
    lock_timeout: float = 1.0,
    lock_attempts: int = 20,
    allow_pooler: bool = False,
    **options: Any,
) -> None:
    """Run Alembic's current command. Call it in `env.py`.

    `metadata` has the tables. `url` is the URL of the database, as `Database` takes it. None means that each command
    gets a URL. `sql` is a folder of .sql files, which define functions, triggers and policies. Each statement must be
    repeatable, such as CREATE OR REPLACE FUNCTION.

    - One process migrates a database at a time. Other processes wait for it, and raise `MigrationBlocked` after `wait`
      seconds. `MigrationBlocked` is also raised if the URL is that of a pooler, because the lock belongs to the
      session. With `allow_pooler` a pooler in session mode is accepted.
    - Each migration is a transaction. Its statements have no timeout.
    - A migration waits at most `lock_timeout` seconds for a lock, because other transactions queue behind it. Then, or
      after a deadlock, it is rolled back, and started again after a pause. After `lock_attempts` attempts
      `MigrationBlocked` is raised.

    `extensions` are extensions of PostgreSQL that the tables need (`citext`); the migrations create them. `unmanaged`
    are patterns (`procrastinate_*`) of names of tables, functions and types that another project manages.
    `role_statements` create the roles of the `TableGrant`s; they are those of `howdah.tenancy.login_role_statements`.
    They are executed before the migrations, also in scratch databases, because roles belong to the server.
    The linter checks the migrations after the revision `linted_after`. Other options are passed to Alembic's
    `context.configure`.
    """
    from alembic import context

    if isinstance(role_statements, str):
        raise TypeError(f"role_statements must be a list of statements, not the text {role_statements!r}")
    settings = LockSettings(wait=wait, lock_timeout=lock_timeout, attempts=lock_attempts)
    environment = Environment(
        metadata=metadata,
        url=url,
        sql=sql,
        extensions=tuple(extensions),
        role_statements=tuple(role_statements),
        unmanaged=tuple(unmanaged),
        linted_after=linted_after,
        locks=settings,
        allow_pooler=allow_pooler,
        options=options,
    )
    call = context.config.attributes.get(CALL)
    if call is None:  # Alembic's own command
        call = Call()
    call.environment = environment
    if call.is_question:
        return
    if context.is_offline_mode():
        _write_sql(environment)
        return
    found = call.url or url
    if found is None:
        raise ValueError(
            "run_migrations has url=None, so the command needs a URL: pass --url, or call howdah.alembic.Migrations"
        )
    run_blocking(_migrate(str_url(found), environment, call))


def str_url(url: str | URL) -> str:
    """The URL as text, with its password."""
    return make_url(url).render_as_string(hide_password=False)


def _write_sql(environment: Environment) -> None:
    """Write the SQL of the migrations instead of executing it."""
    from alembic import context

    options: dict[str, Any] = {
        "dialect_name": "postgresql",
        "target_metadata": environment.metadata,
        "literal_binds": True,
        "transaction_per_migration": True,
        "dialect_opts": {"paramstyle": "named"},
        LOCK_TIMEOUT_OPTION: environment.locks.milliseconds,
        "on_version_apply": lambda *, ctx, heads, **_: store_applied(ctx, context.script, heads),
    }
    context.configure(**{**options, **environment.options})
    impl = context.get_context().impl
    impl.static_output(f"SET lock_timeout = '{environment.locks.milliseconds}ms';\n")
    for statement in environment.role_statements:
        impl.static_output(f"{statement};\n")
    with context.begin_transaction():
        context.run_migrations()


async def _migrate(url: str, environment: Environment, call: Call) -> None:
    """Open a connection without timeouts, wait for the lock, and run the migrations."""
    if not environment.allow_pooler:
        await reject_pooler(url)
    async with (
        Database(
            url,
            pool_size=1,
            statement_timeout=None,
            lock_timeout=environment.locks.lock_timeout,
            idle_in_transaction_timeout=None,
            application_name="howdah migrate",
        ) as database,
        database.engine.connect() as connection,
    ):
        await prepare_session(connection, environment.locks)
        async with migration_lock(connection, environment.locks):
            for statement in environment.role_statements:
                await connection.exec_driver_sql(statement)
            await connection.commit()
            await connection.run_sync(_run, environment, call)


def _run(connection: Connection, environment: Environment, call: Call) -> None:
    """Run the migrations, each in a transaction of its own."""
    from alembic import context

    def include_name(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "table" and name is not None and not environment.is_managed(name):
            return False
        if kind == "schema" and (name or "") not in (environment.schemas or [""]):
            return False
        user = environment.options.get("include_name")
        return user is None or bool(user(name, kind, parents))

    progress = Progress()

    def remember(*, ctx: MigrationContext, step: Any, heads: Collection[str], **_: Any) -> None:
        store_applied(ctx, context.script, heads)
        progress.applied += 1
        if step.is_upgrade:
            call.applied.append(f"upgraded to {step.up_revision_id}")
        else:
            call.applied.append(f"downgraded to {', '.join(step.down_revision_ids) or 'base'}")

    options: dict[str, Any] = {
        "connection": connection,
        "target_metadata": environment.metadata,
        "render_item": render_item,
        "compare_server_default": True,
        "include_schemas": environment.schemas is not None,
        "transaction_per_migration": True,
        "process_revision_directives": call.on_revision or _refuse_revision,
        **environment.options,
        "include_name": include_name,
        "on_version_apply": remember,
    }
    if call.on_connect is not None:
        call.on_connect(connection)
    context.configure(**options)
    find_steps = context.get_context().opts["fn"]
    steps: list[Any] | None = None

    def remaining(revision: Any, migration_context: Any) -> Any:
        """The steps that are left. They are found only once, because `+1` and `-1` are relative to the revision."""
        nonlocal steps
        if steps is None:
            steps = _find_steps(find_steps, revision, migration_context, context.script)
        for step in steps[progress.applied :]:
            progress.commits = 0
            if call.on_step is not None:
                call.on_step(step.revision.revision)
            yield step

    def attempt() -> None:
        context.configure(**options, fn=remaining)
        # the method that a dialect of Alembic overrides; the option accepts no function for a table with an identity
        context.get_context().impl.compare_server_default = _leave_defaults_to_the_catalog  # type: ignore[method-assign]
        with context.begin_transaction():
            context.run_migrations()
        store_applied_if_missing(context.get_context(), context.script)

    try:
        retry_after_lock_timeout(connection, attempt, progress, environment.locks)
    except (DeadlockDetected, LockTimeout) as error:
        waiting = (steps or [])[progress.applied :]
        name = waiting[0].revision.revision if waiting else "of Alembic's table"
        raise MigrationBlocked(
            f"migration {name} {progress.outcome} after {progress.failures} attempts. Each waited "
            f"{environment.locks.lock_timeout:g} s for a lock: {error.statement}. "
            f"{describe_old_transactions(connection)}"
        ) from error
    connection.commit()


def _find_steps(
    find: Callable[..., Any], revision: Any, context: MigrationContext, scripts: ScriptDirectory
) -> list[Any]:
    """The steps of Alembic's command. An upgrade has none if a later release has migrated the database."""
    from alembic.util.exc import CommandError

    try:
        return list(find(revision, context))
    except CommandError:
        if find.__name__ != "upgrade" or not is_newer(context, scripts):
            raise
    _logger.warning(
        "the database is at revision %s, which is newer than %s, the newest revision of this release: nothing was "
        "migrated",
        ", ".join(revision),
        ", ".join(scripts.get_heads()),
    )
    return []


def _leave_defaults_to_the_catalog(*_: Any) -> bool:
    """Whether two defaults differ, for Alembic: no. The comparison of the catalog finds the difference.

    Alembic would evaluate them. `current_setting('app.tenant_id')` fails then, `gen_random_uuid()` never equals itself,
    and `nextval()` has an effect.
    """
    return False


def _refuse_revision(context: MigrationContext, _revision: Any, _scripts: list[MigrationScript]) -> None:
    """Refuse `alembic revision --autogenerate`, which would silently drop constraints."""
    from alembic.util.exc import CommandError

    if context.config is not None and getattr(context.config.cmd_opts, "autogenerate", True):
        raise CommandError(
            "alembic revision --autogenerate leaves out CHECK constraints, functions and triggers: "
            "run howdah migrate new MESSAGE"
        )
