"""Find statements of migrations that block a service, with squawk (<https://squawkhq.com>)."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, event

from howdah.alembic.programs import find_program

_TIMEOUT_SECONDS: Final = 60.0

# The statements that a migration may commit before its end, because they can be executed again after an error.
_REPEATABLE: Final = re.compile(
    r"\bIF (NOT )?EXISTS\b|^\s*ALTER TABLE\s.*\sNOT VALID$|^\s*SET\b", re.IGNORECASE | re.DOTALL
)
COMMITTED_IN_PART: Final = "committed-in-part"

# The rules of squawk that are about locks, rewrites of tables, and the release that still runs during a migration. Its
# other rules are about style.
RULES: Final[Mapping[str, str]] = {
    "adding-field-with-default": "add the column without the default, set the default, then update the rows in batches",
    "adding-foreign-key-constraint": "use add_constraint of howdah.alembic",
    "adding-not-nullable-field": "use set_not_null of howdah.alembic",
    "adding-required-field": "add the column as nullable or with a default, fill it, then use set_not_null",
    "adding-serial-primary-key-field": "create_index_concurrently with unique=True, then add the key USING INDEX",
    "ban-concurrent-index-creation-in-transaction": "use create_index_concurrently of howdah.alembic",
    "ban-drop-column": "first release a version that doesn't use the column, then drop it in a later migration",
    "ban-drop-database": "",
    "ban-drop-table": "first release a version that doesn't use the table, then drop it in a later migration",
    "ban-truncate-cascade": "",
    "changing-column-type": "add a second column, copy the values in batches, then switch to it",
    "constraint-missing-not-valid": "use add_constraint of howdah.alembic",
    COMMITTED_IN_PART: "move the concurrent operations into a migration of their own",
    "disallowed-unique-constraint": "create_index_concurrently with unique=True, then ADD CONSTRAINT … USING INDEX",
    "renaming-column": "add a second column and write both, because the running release uses the old name",
    "renaming-table": "keep the name, because the running release uses it",
    "require-concurrent-index-creation": "use create_index_concurrently of howdah.alembic",
    "require-concurrent-index-deletion": "use drop_index_concurrently of howdah.alembic",
    "require-concurrent-reindex": "write REINDEX CONCURRENTLY in an autocommit_block",
    "syntax-error": "",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement of a migration that blocks other transactions, or breaks the release that still runs."""

    revision: str
    rule: str
    message: str
    statement: str

    def __str__(self) -> str:
        advice = RULES.get(self.rule)
        return (
            f"migration {self.revision}: {self.rule}: {self.message} Statement: {_shorten(self.statement)}."
            + (f" Instead: {advice}." if advice else "")
            + f' To accept it, write accepted_findings = {{"{self.rule}": "the reason"}} into the migration'
        )


class LinterMissing(RuntimeError):
    """squawk isn't installed."""


@dataclass(slots=True)
class StatementRecorder:
    """Records the statements of each migration that a connection executes."""

    statements: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)
    _current: list[tuple[str, bool]] = field(default_factory=list)

    def listen(self, connection: Connection) -> None:
        """Record the statements of this connection."""
        event.listen(connection, "before_cursor_execute", self._record)

    def start(self, revision: str) -> None:
        """The next statements are those of this migration."""
        self._current = self.statements.setdefault(revision, [])

    def _record(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip()[:6].upper() != "SELECT" and "alembic_version" not in statement:
            is_autocommit = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
            self._current.append((statement.strip().rstrip(";"), is_autocommit))


def lint(
    statements: Mapping[str, Sequence[tuple[str, bool]]], accepted: Mapping[str, Mapping[str, str]], *, version: int
) -> tuple[list[Finding], list[str]]:
    """Check the statements of migrations, by revision.

    Each statement is a pair: its text, and whether it is executed in autocommit mode. `accepted` has the accepted rules
    of each revision with the reasons. `version` is the major version of PostgreSQL. Returns the findings that aren't
    accepted, and a text for each accepted rule that isn't violated. Raises `LinterMissing` if squawk isn't installed.
    """
    program = _find_squawk()
    findings: list[Finding] = []
    unneeded: list[str] = []
    for revision, listed in statements.items():
        found = [*_find_partial_commits(revision, listed), *_lint_one(program, revision, listed, version)]
        rules = accepted.get(revision, {})
        findings += [each for each in found if each.rule not in rules]
        unneeded += [
            f"migration {revision}: accepted_findings has {rule}, which the linter doesn't find: remove it"
            for rule in rules
            if rule not in {each.rule for each in found}
        ]
    return findings, unneeded


def _lint_one(program: str, revision: str, listed: Sequence[tuple[str, bool]], version: int) -> Iterable[Finding]:
    """The findings for one migration."""
    lines: list[str] = []
    ends: list[tuple[int, str]] = []  # the number of the line after each statement

    def write(sql: str, statement: str = "") -> None:
        lines.extend(f"{sql};".splitlines())
        ends.append((len(lines), statement))

    is_open = False
    for statement, is_autocommit in listed:
        if is_autocommit == is_open:
            write("COMMIT" if is_open else "BEGIN")
            is_open = not is_open
        write(statement, statement)
    if is_open:
        write("COMMIT")
    ran = subprocess.run(
        [program, "--reporter", "json", "--pg-version", f"{version}.0", "--stdin-filepath", f"{revision}.sql"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_SECONDS,
    )
    if not ran.stdout.lstrip().startswith("["):
        raise RuntimeError(f"squawk failed: {ran.stderr or ran.stdout}")
    for each in json.loads(ran.stdout):
        if each["rule_name"] in RULES:
            statement = next((text for end, text in ends if each["line"] < end), "")
            yield Finding(revision, each["rule_name"], each["message"], statement)


def _find_partial_commits(revision: str, listed: Sequence[tuple[str, bool]]) -> Iterable[Finding]:
    """Statements that are committed before a statement in autocommit mode, and can't be executed again.

    If the later statement fails, the migration is neither applied nor can it be run again.
    """
    last = max((index for index, (_, is_autocommit) in enumerate(listed) if is_autocommit), default=0)
    for statement, is_autocommit in listed[:last]:
        if not is_autocommit and not _REPEATABLE.search(statement):
            message = "A later statement runs outside the transaction. If it fails, this one can't be executed again."
            yield Finding(revision, COMMITTED_IN_PART, message, statement)


def _find_squawk() -> str:
    """The program of the package squawk-cli."""
    found = find_program("squawk")
    if found is None:
        raise LinterMissing("squawk isn't installed: add squawk-cli to the development dependencies, or use --no-lint")
    return found


def _shorten(statement: str) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= 120 else line[:117] + "…"
