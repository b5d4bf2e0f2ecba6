"""Hooks of schemathesis for Shop: the rules that its OpenAPI description can't express."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import count
from typing import Any, Final, TypeAlias

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.openapi.checks import RejectedPositiveData

from howdah.testing import fuzzing
from shop.ledger.http.problems import REFUSAL_STATUS

_Case: TypeAlias = schemathesis.Case[Any]

# A refusal depends on other rows, such as the accounts and their currencies.
fuzzing.STATE_PROBLEMS.update(code.replace("_", "-") for code in REFUSAL_STATUS)
# No generated token was issued. A password may be a common one.
fuzzing.STATE_PROBLEMS.update(("invalid-token", "password-rejected"))

# At most one of these parameters of `/accounts/{account_id}/balance`.
_MOMENTS: Final = ("at", "entry_number", "effective_at")

# The response has a line for each line of the body, so an invalid line doesn't reject the request.
_LINE_ROUTES: Final = frozenset({"POST /accounts/batch", "POST /transfers/batch"})

_API_KEY: Final = "X-API-Key"

_ACCOUNTS: Final = ("from_account_id", "to_account_id")

# The ids of accounts by currency, and of users. Every second valid request uses them, so that it isn't refused.
_account_ids: Final[defaultdict[str, list[str]]] = defaultdict(list)
_user_ids: Final[list[str]] = []
_calls: Final = count()


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: _Case, kwargs: dict[str, Any]) -> None:
    """Send only one of the parameters that exclude each other, and ids of existing rows.

    schemathesis generates an API key for each route with that scheme. But each request has an access token, and two
    credentials are rejected.
    """
    if case.headers is not None:
        case.headers.pop(_API_KEY, None)
    if not fuzzing.is_valid(case):
        return
    if case.operation.path == "/accounts/{account_id}/balance":
        for name in [name for name in _MOMENTS if name in case.query][1:]:
            del case.query[name]
    if next(_calls) % 2:
        _use_existing_rows(case.body)


@schemathesis.hook
def after_call(context: schemathesis.HookContext, case: _Case, response: schemathesis.Response) -> None:
    """Remember the ids of accounts and users."""
    if response.status_code == 201 and case.operation.label in ("POST /accounts", "POST /users"):
        created = json.loads(response.content)
        if case.operation.path == "/users":
            _user_ids.append(created["id"])
        elif created["allows_negative"] or len(_account_ids[created["currency"]]) < 2:
            _account_ids[created["currency"]].insert(0, created["id"])


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Failure, case: _Case, response: schemathesis.Response
) -> bool:
    """Drop the failure if the line that was generated to be invalid was rejected as a line, or if the form of OAuth 2.0
    has an unknown user or refresh token."""
    if isinstance(failure, RejectedPositiveData) and case.operation.label == "POST /auth/token":
        return bool(json.loads(response.content)["error"] != "invalid_grant")
    if not isinstance(failure, AcceptedNegativeData) or case.operation.label not in _LINE_ROUTES:
        return True
    return not any(json.loads(line)["outcome"] == "invalid" for line in response.content.splitlines())


def _use_existing_rows(body: Any) -> None:
    """Replace the ids in the body, wherever they are in it."""
    if isinstance(body, list):
        for each in body:
            _use_existing_rows(each)
    elif isinstance(body, dict):
        pair = next((ids[:2] for ids in _account_ids.values() if len(ids) > 1), None)
        if pair is not None and {*_ACCOUNTS} <= body.keys():
            body.update(zip(_ACCOUNTS, pair, strict=True))
        if _user_ids and body.get("user_id") is not None:
            body["user_id"] = _user_ids[-1]
        for each in body.values():
            _use_existing_rows(each)
