"""Hooks of schemathesis for Shop: what its OpenAPI description can't say."""

from __future__ import annotations

import json
from typing import Any, Final, TypeAlias

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure

from howdah.testing import fuzzing
from shop.ledger.http.problems import REFUSAL_STATUS

_Case: TypeAlias = schemathesis.Case[Any]

# A refusal depends on other rows, such as the accounts and their currencies.
fuzzing.STATE_PROBLEMS.update(code.replace("_", "-") for code in REFUSAL_STATUS)

# At most one of these parameters of `/accounts/{account_id}/balance`.
_MOMENTS: Final = ("at", "entry_number", "effective_at")

# The response has a line for each line of the body, so an invalid line doesn't reject the request.
_LINE_ROUTES: Final = frozenset({"POST /accounts/batch", "POST /transfers/batch"})


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: _Case, kwargs: dict[str, Any]) -> None:
    """Send only one of the parameters that exclude each other."""
    if case.operation.path == "/accounts/{account_id}/balance" and fuzzing.is_valid(case):
        for name in [name for name in _MOMENTS if name in case.query][1:]:
            del case.query[name]


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Failure, case: _Case, response: schemathesis.Response
) -> bool:
    """Drop the failure if the line that was generated to be invalid was rejected as a line."""
    if not isinstance(failure, AcceptedNegativeData) or case.operation.label not in _LINE_ROUTES:
        return True
    return not any(json.loads(line)["outcome"] == "invalid" for line in response.content.splitlines())
