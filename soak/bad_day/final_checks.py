"""The checks after the last request: of the stored data, the open resources, and the log."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Set
from pathlib import Path
from typing import Any, Final

import orjson
from sqlalchemy import func, select

import howdah
from howdah import Database, HowdahError
from shop.ledger.models import Account
from shop.orders.models import OrderItem
from shop.users.models import User
from soak.bad_day.cluster import SERVICE_NAME, Cluster
from soak.bad_day.deployment import MAX_CONNECTIONS, Deployment
from soak.bad_day.faults.slow_clients import UNFINISHED
from soak.bad_day.model import UPLOAD_USERS, Model
from soak.bad_day.violations import Violations
from soak.bad_day.watch import MEGABYTE, Resources, read_resources
from soak.ledger_state import compare_transfers, read_ledger_state

MAX_LEAKED_MEGABYTES: Final = 150
MAX_LEAKED_FILES: Final = MAX_CONNECTIONS + 10
"""Idle connections to PostgreSQL are no leak, but they are file descriptors."""
MAX_LEAKED_THREADS: Final = 8
_IDLE: Final = "idle"
_VARIABLE: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|\d+|True|False")
_RAISED: Final = re.compile(r"^[A-Za-z_.]+: .*$", re.MULTILINE)
"""The line of a traceback that names the exception. Lines of its statement may follow."""
_LIBRARY_ERRORS: Final = "|".join(
    name for name, each in vars(howdah.errors).items() if isinstance(each, type) and issubclass(each, HowdahError)
)
_KIND_LENGTH: Final = 150
_SHOWN: Final = 5
# Errors that the faults must cause, each with the reason, and with the fault that must have been inflicted.
ALLOWED_ERRORS: Final[tuple[tuple[re.Pattern[str], str, str | None], ...]] = (
    (
        re.compile(rf"the job '[\w-]+' failed(: howdah\.errors\.|, … times in a row: ({_LIBRARY_ERRORS}): )"),
        "it can't run without the database; it runs again",
        None,
    ),
    (
        re.compile(r"not JSON: another transaction, such as an import, held a lock for too long"),
        "a service that starts while a table is locked ends with this message; it is started again",
        None,
    ),
    (re.compile(r"the database server needs an operator: \(DiskFullError"), "the disk must be freed", "full-disk"),
    (re.compile(r"… requests did not end in time"), "they wait for the frozen server", "stop-while-frozen"),
    (re.compile(r"the application's lifespan did not end"), "a batch waits for the frozen server", "stop-while-frozen"),
    (re.compile(r"Traceback .*in lifespan", re.DOTALL), "says what the lifespan waits for", "stop-while-frozen"),
)


async def check_leaks(
    cluster: Cluster, deployment: Deployment, before: Resources, violations: Violations, idle_seconds: float
) -> str:
    """Wait, and compare the resources of the service with those before the faults. Return a summary."""
    await asyncio.sleep(idle_seconds)
    after = read_resources(deployment.current.pid)
    if after.rss - before.rss > MAX_LEAKED_MEGABYTES * MEGABYTE:
        violations.add("leak: memory", f"{before}; at the end {after}")
    if after.files - before.files > MAX_LEAKED_FILES:
        violations.add("leak: file descriptors", f"{before}; at the end {after}")
    if after.threads - before.threads > MAX_LEAKED_THREADS:
        violations.add("leak: threads", f"{before}; at the end {after}")
    async with cluster.connect() as connection:
        rows = await connection.fetch(
            "SELECT state, count(*) AS count FROM pg_stat_activity WHERE application_name = $1 GROUP BY state",
            SERVICE_NAME,
        )
    states = {row["state"]: row["count"] for row in rows}
    if busy := {state: count for state, count in states.items() if state != _IDLE}:
        violations.add("leak: open transactions or statements", str(busy))
    if sum(states.values()) > MAX_CONNECTIONS:
        violations.add("leak: connections", str(states))
    return f"before the faults: {before}; after {idle_seconds:g} idle s: {after}, connections {states}"


async def check_data(url: str, model: Model, violations: Violations) -> str:
    """Compare the database with the acknowledged requests. Call it when the service has ended. Return a summary."""
    posted = {key: (each.id, each.amount) for key, each in model.posted.items()}
    transfers = await compare_transfers(url, model.accounts, posted, model.refused)
    if transfers.lost:
        violations.add("transfers: acknowledged and lost", str(transfers.lost[:_SHOWN]))
    if transfers.refused_but_posted:
        violations.add("transfers: refused but posted", str(transfers.refused_but_posted[:_SHOWN]))
    if transfers.unknown:
        violations.add("transfers: posted twice, or never acknowledged", str(transfers.unknown))
    state = await read_ledger_state(url)
    if state.faults or state.balance_total:
        violations.add("ledger: wrong", str(state))
    async with Database(url, pool_size=1) as database, database.session() as session:
        query = select(Account.id, Account.balance).where(Account.id.in_(model.accounts))
        balances = {str(row.id): row.balance for row in await session.execute(query)}
        orders = Counter(
            {
                row.sku: row.count
                for row in await session.execute(
                    select(OrderItem.sku, func.count().label("count"))
                    .where(OrderItem.sku.in_(model.orders))
                    .group_by(OrderItem.sku)
                )
            }
        )
        emails = list(await session.scalars(select(User.email)))
    expected = model.compute_balances()
    if wrong := {id_: (balances.get(id_), amount) for id_, amount in expected.items() if balances.get(id_) != amount}:
        violations.add("accounts: wrong balances", f"id: (stored, expected): {wrong}")
    if wrong_orders := [article for article in model.orders if orders[article] != 1]:
        violations.add("orders: not stored exactly once", str(wrong_orders[:_SHOWN]))
    check_users(emails, model, violations)
    return f"{transfers}; {state}"


def check_users(emails: list[str], model: Model, violations: Violations) -> None:
    """Every acknowledged user exists, and every upload is stored as a whole or not at all."""
    stored = set(emails)
    if lost := [email for email in model.users if email not in stored]:
        violations.add("users: acknowledged and lost", str(lost[:_SHOWN]))
    sizes = Counter(email.rpartition("-")[0] for email in emails if email.startswith("many-"))
    if partial := {prefix: size for prefix, size in sizes.items() if size != UPLOAD_USERS}:
        violations.add("uploads: stored in part", str(partial))
    if lost_uploads := [prefix for prefix, size in model.uploads.items() if sizes[prefix] != size]:
        violations.add("uploads: acknowledged and lost", str(lost_uploads[:_SHOWN]))
    if unfinished := [email for email in emails if email.startswith(UNFINISHED)]:
        violations.add("uploads: stored although never finished", str(unfinished[:_SHOWN]))


def check_log(log: Path, inflicted: Set[str], violations: Violations) -> str:
    """Every error in the log is a violation, unless it is allowed. Return a summary."""
    allowed = [pattern for pattern, _, fault in ALLOWED_ERRORS if fault is None or fault in inflicted]
    errors, lines = Counter[str](), 0
    examples: dict[str, str] = {}
    with log.open(errors="replace") as file:
        for line in file:
            lines += 1
            error = describe_error(line)
            if error is not None and not any(each.match(error) for each in allowed):
                errors[error] += 1
                examples.setdefault(error, line.strip()[-600:])
    for error, count in errors.items():
        violations.add(f"log: {error}", f"{count} times, for example {examples[error]}")
    return f"{lines:,} lines of log, {errors.total()} with errors"


def describe_error(line: str) -> str | None:
    """The error in a line of the log, without numbers and ids, so that equal errors are counted together. Else None."""
    try:
        entry: Any = orjson.loads(line)
    except ValueError:
        return f"not JSON: {line.strip()}"[:_KIND_LENGTH] if line.strip() else None
    if not isinstance(entry, dict) or entry.get("level") not in {"error", "critical", "exception"}:
        return None
    raised = _RAISED.findall(str(entry.get("exception") or ""))
    return _VARIABLE.sub("…", f"{str(entry.get('event')).strip()}: {raised[-1] if raised else ''}")[:_KIND_LENGTH]
