"""The rules for each answer: its time, its status and its form."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Final

import orjson

from soak.bad_day.wire import Answer

UNAVAILABLE: Final = 503
_CLIENT_ERROR: Final = 400
_PROBLEM_JSON: Final = "application/problem+json"
_RETRY_AFTER: Final = re.compile(r"[1-9][0-9]{0,2}")


@dataclass(frozen=True)
class Kind:
    """A kind of request. `bound` is the longest time until the end of the response, in seconds."""

    name: str
    bound: float
    statuses: Set[int]
    """The statuses that are possible besides 503."""


# The service's limits are in `soak.bad_day.deployment`. A request may wait for a connection, and then for a statement
# on a server that doesn't answer. A transfer may do both twice, because it may take two transactions.
READ: Final = Kind("read", 15, {200})
LIST: Final = Kind("list", 15, {200})
TRANSFER: Final = Kind("transfer", 15, {201, 409, 422})
ORDER: Final = Kind("order", 15, {201, 409})
USER: Final = Kind("user", 15, {201, 409})
BULK: Final = Kind("bulk upload", 30, {201, 409})
EXPORT: Final = Kind("export", 30, {200})
HEALTH: Final = Kind("health", 2, {200})
READINESS: Final = Kind("readiness", 12, {200})


def find_violations(kind: Kind, answer: Answer) -> list[str]:
    """The rules that the answer breaks. Its time isn't checked here."""
    violations = []
    if answer.status not in kind.statuses and not (answer.status == UNAVAILABLE and kind is not HEALTH):
        violations.append(f"status {answer.status}")
    if answer.status == UNAVAILABLE and not _RETRY_AFTER.fullmatch(answer.headers.get("retry-after", "")):
        violations.append("503 without a valid Retry-After")
    if answer.status >= _CLIENT_ERROR:
        violations += _check_problem(answer)
    return violations


def read_problem_type(answer: Answer) -> str:
    """The `type` of problem details, or an empty text."""
    try:
        content: Any = orjson.loads(answer.body)
        return str(content["type"])
    except (ValueError, KeyError, TypeError):
        return ""


def shorten_problem_type(answer: Answer) -> str:
    """The last part of the `type` of problem details, for example `overloaded`."""
    return read_problem_type(answer).rpartition(":")[2].rpartition("/")[2]


def _check_problem(answer: Answer) -> list[str]:
    """The violations of the rule that the body is problem details (RFC 9457)."""
    if not answer.headers.get("content-type", "").startswith(_PROBLEM_JSON):
        return [f"{answer.status} without problem details"]
    try:
        content = orjson.loads(answer.body)
    except ValueError:
        return [f"{answer.status} with problem details that aren't JSON"]
    if not (
        isinstance(content, dict)
        and isinstance(content.get("type"), str)
        and isinstance(content.get("title"), str)
        and content.get("status") == answer.status
    ):
        return [f"{answer.status} with incomplete problem details"]
    return []
