"""The migrations of a project: write, check and apply them."""

from __future__ import annotations

import shutil
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from howdah.alembic.catalog import CatalogEntry
from howdah.alembic.differences import compare_schemas, read_expected_schema, read_schema_at
from howdah.alembic.drafts import Draft
from howdah.alembic.environment import CALL, Call, Environment, str_url
from howdah.alembic.linting import Finding, StatementRecorder, lint
from howdah.alembic.programs import format_files
from howdah.alembic.revisions import READ_REVISIONS, FoundRevisions, RevisionState
from howdah.alembic.running import run_blocking
from howdah.alembic.scratch import scratch_database
from howdah.database import Database
from howdah.errors import HowdahError, InvalidStatement

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

_TEMPLATE: Final = Path(__file__).with_name("script.py.mako")
# Alembic keeps the context of the running command in global variables.
_ALEMBIC: Final = threading.RLock()


@dataclass(frozen=True, slots=True)
class NewMigration:
    """A migration that was written. `paths` has a second file if constraints or indexes of existing tables change.

    `problems` are errors and differences that remain after the migration: complete it by hand. `downgrade_problems`
    says what a downgrade doesn't restore. `warnings` has NOT NULL columns without a default: the migration would fail
    on a table with rows. `is_empty` is true if the models and the .sql files need no migration.
    """

    paths: list[Path]
    problems: list[str]
    downgrade_problems: list[str]
    is_empty: bool
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of a check.

    `differences` says how the migrated schema differs from that of the models and the .sql files.
    `findings` are statements that block a service. `unneeded` are accepted findings that don't occur. `catalog`
    describes the schema of the models and the .sql files.
    """

    differences: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unneeded: list[str] = field(default_factory=list)
    catalog: dict[str, CatalogEntry] = field(default_factory=dict, repr=False)

    @property
    def has_problems(self) -> bool:
        """Whether the check has failed."""
        return bool(self.differences or self.findings or self.unneeded)

    def __str__(self) -> str:
        sections = {
            "the migrations don't create what the models and the .sql files define": self.differences,
            "the linter's findings": [str(each) for each in self.findings],
            "accepted findings that don't occur": self.unneeded,
        }
        return "\n".join("\n  ".join([f"{title}:", *lines]) for title, lines in sections.items() if lines)


class Migrations:
    """The migrations in `folder`: the folder with `env.py` and `versions/`.

    Every method that isn't `async` blocks. While an event loop runs, call it in a thread (`asyncio.to_thread`), because
    it blocks the loop. If a URL is None, the URL is used that `env.py` passes to `run_migrations`. `command` is the
    command that applies migrations, for messages.
    """

    def __init__(self, folder: Path | str, *, command: str = "howdah migrate up") -> None:
        self.folder: Path | None = Path(folder).resolve()
        self.command = command
        self._project: Path | None = None
        self._head: str | None = None
        self._known: frozenset[str] | None = None

    @classmethod
    def of_project(cls, directory: Path | str = ".", *, command: str = "howdah migrate up") -> Migrations:
        """The migrations of Alembic's configuration: `[tool.alembic]` in `pyproject.toml`, or `alembic.ini`."""
        project = cls(directory, command=command)
        project._project, project.folder = project.folder, None
        return project

    @property
    def head(self) -> str:
        """The newest revision. It is read once. Raises Alembic's `CommandError` if there is none, or more than one."""
        from alembic.util.exc import CommandError

        if self._head is None:
            self._head = self._scripts().get_current_head()
        if self._head is None:
            raise CommandError("there is no migration yet: run howdah migrate new MESSAGE")
        return self._head

    def environment(self) -> Environment:
        """The arguments that `env.py` passes to `run_migrations`. No connection is opened."""
        from alembic.util.exc import CommandError

        call = Call(is_question=True)
        with self._running(call) as config:
            from alembic.runtime.environment import EnvironmentContext
            from alembic.script import ScriptDirectory

            scripts = ScriptDirectory.from_config(config)
            with EnvironmentContext(config, scripts):
                scripts.run_env()
        if call.environment is None:
            raise CommandError(f"{self._scripts().env_py_location} doesn't call run_migrations of howdah.alembic")
        return call.environment

    def upgrade(self, url: str | URL | None = None, revision: str = "head") -> list[str]:
        """Apply the migrations up to `revision`. Returns a text for each applied migration.

        If a later release has migrated the database, nothing is done, and a warning is logged.

        Raises `MigrationBlocked` if another process is migrating, or if a lock isn't released. Raises Alembic's
        `CommandError` if the database is at a revision that doesn't exist in the folder.
        """
        return self._migrate(Call(url=None if url is None else str_url(url)), "upgrade", revision)

    def downgrade(self, revision: str, url: str | URL | None = None) -> list[str]:
        """Go back to `revision`; `base` is an empty database. Data of dropped tables and columns is lost."""
        return self._migrate(Call(url=None if url is None else str_url(url)), "downgrade", revision)

    async def current(self, database: Database) -> str | None:
        """The revision of the database. None means that it was never migrated."""
        return ", ".join(sorted((await self._find(database)).current)) or None

    async def compare_revision(self, database: Database) -> RevisionState:
        """How the database's revision compares with the newest one of this release.

        - `current`: they are the same.
        - `behind`: the database needs migrations of this release, or was never migrated.
        - `newer`: a later release has migrated it, from the newest revision of this one. This release still works if
          those migrations are compatible with it.
        - `unknown`: the database is at a revision that this release doesn't have, and doesn't build on its newest one.
          It may belong to another project.
        """
        return (await self._find(database)).compare({self.head}, self._known_revisions())

    async def find_revision_problem(self, database: Database) -> str | None:
        """The reason why a service isn't ready, or None if the database's revision is the newest one, or a newer one.

        A newer one is no problem: during a deployment, the next release has migrated the database, and this release
        still serves.
        """
        found = await self._find(database)
        state = found.compare({self.head}, self._known_revisions())
        if state in ("current", "newer"):
            return None
        shown = ", ".join(sorted(found.current)) or None
        if state == "behind":
            return f"the schema is at {shown}, not at {self.head}: run {self.command}"
        return (
            f"the schema is at {shown}, which this release doesn't have, and doesn't build on {self.head}: use the "
            "database of this service, or the release that has migrated it"
        )

    async def _find(self, database: Database) -> FoundRevisions:
        """The revisions of the database."""
        async with database.session(read_only=True) as session:
            try:
                rows = await session.execute(text(READ_REVISIONS.format(table="alembic_version")))
            except InvalidStatement as error:
                if error.sqlstate == "42P01":  # no such table
                    return FoundRevisions.of_rows([])
                raise
            return FoundRevisions.of_rows((row.version_num, row.applied) for row in rows)

    def write_sql(self, revisions: str = "head", output: TextIO | None = None) -> None:
        """Write the SQL of migrations: of those up to a revision, or of a range such as `0003:head`.

        By default it is written to standard output.

        Migrations that read from the database can't be written as SQL.
        """
        from alembic import command

        call = Call()
        with self._running(call, output_buffer=output or sys.stdout) as config:
            command.upgrade(config, revisions, sql=True)

    def new(self, message: str, *, server_url: str | URL | None = None) -> NewMigration:
        """Write a migration from the newest revision to the schema of the models and the .sql files.

        It is written and then tested on a scratch database on the server of `server_url`. By default this is the URL of
        `env.py`. Changed .sql files are copied into the folder with the migration's name, so that later changes of them
        don't change this migration.
        """
        environment = self.environment()
        with self._scratch(environment, server_url) as url:
            expected = read_expected_schema(url, environment)
            versions = self._prepare_folder()
            if self._scripts().get_current_head() is not None:
                self.upgrade(url)
            revisions = self._next_revisions()
            draft = Draft(environment, expected, _changed_files(versions, environment.sql), revisions[1])
            paths = self._write_revision(url, message, revisions[0], draft)
            format_files(paths)
            if draft.changed_files and environment.sql is not None:
                copies = paths[0].with_suffix("")
                copies.mkdir()
                for name in draft.changed_files:
                    shutil.copyfile(environment.sql / name, copies / name)
            problems = [*draft.problems, *self._try(url, environment, expected)]
        return NewMigration(paths, problems, draft.downgrade_problems, draft.is_empty, draft.warnings)

    def check(self, *, server_url: str | URL | None = None, is_linted: bool = True) -> CheckReport:
        """Compare the migrated schema with that of the models and the .sql files, and lint the migrations.

        Both are created in a scratch database on the server of `server_url`. By default this is the URL of `env.py`.
        """
        environment = self.environment()
        recorder = StatementRecorder()
        with self._scratch(environment, server_url) as url:
            expected = read_expected_schema(url, environment)
            call = Call(url=url, on_connect=recorder.listen, on_step=recorder.start)
            self._migrate(call, "upgrade", "head")
            report = CheckReport(
                compare_schemas(read_schema_at(url, environment), expected),
                catalog={name: each.entry for name, each in expected.items()},
            )
            if not is_linted:
                return report
            accepted, linted = self._accepted_findings(environment.linted_after)
            statements = {name: recorder.statements[name] for name in recorder.statements if name in linted}
            findings, unneeded = lint(statements, accepted, version=_server_version(url))
        return replace(report, findings=findings, unneeded=unneeded)

    def _try(self, url: str, environment: Environment, expected: Mapping[str, Any]) -> Iterator[str]:
        """Run the new migration. Yields its error, or the differences that remain after it."""
        try:
            self.upgrade(url)
        except (SQLAlchemyError, HowdahError, NameError, ImportError, AttributeError, TypeError, SyntaxError) as error:
            yield f"the migration fails: {error}"
        else:
            yield from compare_schemas(read_schema_at(url, environment), expected)

    def _accepted_findings(self, after: str | None) -> tuple[dict[str, dict[str, str]], set[str]]:
        """The accepted findings of each migration, and the revisions that are linted."""
        accepted: dict[str, dict[str, str]] = {}
        for script in self._scripts().walk_revisions(base=after or "base", head="heads"):
            if script.revision != after:
                accepted[script.revision] = dict(getattr(script.module, "accepted_findings", {}))
        return accepted, set(accepted)

    def _next_revisions(self) -> tuple[str, str]:
        """The names of two more revisions: the next numbers, or Alembic's random ones if the newest is no number."""
        from alembic.util import rev_id

        head = self._scripts().get_current_head() or "0000"
        if not head.isdigit():
            return rev_id(), rev_id()
        return f"{int(head) + 1:04d}", f"{int(head) + 2:04d}"

    def _write_revision(self, url: str, message: str, revision: str, draft: Draft) -> list[Path]:
        """Write the files, and return their paths."""
        from alembic import command

        call = Call(url=url, on_revision=draft.complete)
        with self._running(call) as config:
            written = command.revision(config, message, autogenerate=True, rev_id=revision)
        self._head = self._known = None
        scripts = written if isinstance(written, list) else [written]
        return [Path(script.path) for script in scripts if script is not None]

    def _prepare_folder(self) -> Path:
        """Create `versions/` and the template of migrations if they don't exist, and return `versions/`."""
        scripts = self._scripts()
        folder = Path(scripts.dir)
        versions = Path(scripts.version_locations[0] if scripts.version_locations else folder / "versions")
        versions.mkdir(exist_ok=True)
        if not (folder / _TEMPLATE.name).exists():
            shutil.copyfile(_TEMPLATE, folder / _TEMPLATE.name)
        return versions

    def _migrate(self, call: Call, name: str, revision: str) -> list[str]:
        """Run Alembic's command of this name. Explains the error if the database is at an unknown revision."""
        from alembic import command
        from alembic.script.revision import ResolutionError
        from alembic.util.exc import CommandError

        try:
            with self._running(call) as config:
                getattr(command, name)(config, revision)
        except CommandError as error:
            if not isinstance(error.__cause__, ResolutionError) or error.__cause__.argument == revision:
                raise
            raise CommandError(
                f"the database is at revision {error.__cause__.argument}, which this version doesn't have"
                + (", and which doesn't build on its newest one" if name == "upgrade" else "")
                + ". Run the version that created it, or use a new database"
            ) from error
        return call.applied

    @contextmanager
    def _running(self, call: Call, **options: Any) -> Iterator[Config]:
        """Alembic's configuration with this call. One thread at a time uses Alembic."""
        with _ALEMBIC:
            config = self._config(**options)
            config.attributes[CALL] = call
            yield config

    def _config(self, **options: Any) -> Config:
        """Alembic's configuration. Raises `CommandError` if the project has none."""
        from alembic.config import Config
        from alembic.util.exc import CommandError

        options["cmd_opts"] = Namespace(quiet=True, x=None)
        if self._project is None:
            config = Config(**options)
            config.set_main_option("script_location", str(self.folder).replace("%", "%%"))
            return config
        files = {"file_": self._project / "alembic.ini", "toml_file": self._project / "pyproject.toml"}
        found: dict[str, Any] = {name: str(file) for name, file in files.items() if file.exists()}
        config = Config(**found, **options)
        if config.get_alembic_option("script_location") is None:
            raise CommandError(
                f"{self._project} has no configuration of Alembic. Write this into pyproject.toml: "
                '[tool.alembic] script_location = "%(here)s/migrations"'
            )
        return config

    def _scripts(self) -> ScriptDirectory:
        from alembic.script import ScriptDirectory

        with _ALEMBIC:
            return ScriptDirectory.from_config(self._config())

    def _known_revisions(self) -> frozenset[str]:
        if self._known is None:
            self._known = frozenset(script.revision for script in self._scripts().walk_revisions())
        return self._known

    @contextmanager
    def _scratch(self, environment: Environment, server_url: str | URL | None) -> Iterator[str]:
        """A scratch database on that server, on that of `env.py`, or on the embedded server if both are None."""
        url = server_url or environment.url
        if url is not None:
            with scratch_database(url) as scratch:
                yield scratch
            return
        from howdah.embedded import EmbeddedPostgres

        with EmbeddedPostgres() as server, scratch_database(server.url()) as scratch:
            yield scratch


def describe_url(url: str | URL) -> str:
    """The URL without its password."""
    return make_url(url).difference_update_query(["password"]).render_as_string(hide_password=True)


def _changed_files(versions: Path, sql: Path | None) -> dict[str, Path | None]:
    """The .sql files that differ from their newest copy, each with the folder of that copy. None means a new file."""
    newest = {file.name: file for file in sorted(versions.glob("*/*.sql"))}
    return {
        file.name: newest[file.name].parent if file.name in newest else None
        for file in (sorted(sql.glob("*.sql")) if sql is not None else ())
        if file.name not in newest or newest[file.name].read_bytes() != file.read_bytes()
    }


def _server_version(url: str) -> int:
    """The major version of the server."""

    async def read() -> int:
        async with Database(url, pool_size=1) as database, database.session() as session:
            return int(await session.scalar(text("SELECT current_setting('server_version_num')::int / 10000")) or 0)

    return run_blocking(read())
