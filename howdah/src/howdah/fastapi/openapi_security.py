"""Security in the OpenAPI description: the schemes, and who may call each operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, Final

from fastapi import FastAPI

from howdah.fastapi.access import AccessRule

BEARER_SCHEME: Final[Mapping[str, Mapping[str, Any]]] = {"bearer": {"type": "http", "scheme": "bearer"}}

ROLES_EXTENSION: Final = "x-roles"
SCOPE_EXTENSION: Final = "x-scope"

# The name of the attribute of `app.state` for the schemes.
_SCHEMES_KEY: Final = "howdah_security_schemes"
# OpenAPI 3.1, section 4.8.30: for these types, a security requirement lists scopes.
_SCOPED_TYPES: Final = frozenset({"oauth2", "openIdConnect"})
_CHALLENGE: Final = {"description": "The scheme, and the reason (RFC 6750)", "schema": {"type": "string"}}


def set_security_schemes(app: FastAPI, schemes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the schemes of the application's description. Raises `ValueError` without a scheme."""
    if not schemes:
        raise ValueError("security_schemes needs a scheme: clients learn from it how to send their credentials")
    setattr(app.state, _SCHEMES_KEY, {name: dict(scheme) for name, scheme in schemes.items()})


def find_security_schemes(app: FastAPI) -> Mapping[str, Mapping[str, Any]]:
    """The schemes of an application with `authenticate`, otherwise an empty mapping."""
    schemes: Mapping[str, Mapping[str, Any]] = getattr(app.state, _SCHEMES_KEY, {})
    return schemes


def add_security_schemes(description: dict[str, Any], schemes: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the schemes to the components. Schemes that FastAPI has found in dependencies are kept."""
    if schemes:
        components = description.setdefault("components", {})
        components["securitySchemes"] = {**deepcopy(dict(schemes)), **components.get("securitySchemes", {})}


def describe_rule(
    operation: dict[str, Any], rule: AccessRule, schemes: Mapping[str, Mapping[str, Any]]
) -> Iterable[int]:
    """Add `security`, the roles and the scope of the rule. Returns the statuses of requests that are rejected.

    `security` is empty for `PUBLIC`. If FastAPI has already set `security` from the dependencies, it is kept. `x-roles`
    and `x-scope` are for programs, such as the matrix test.
    """
    if rule.is_public:
        operation.setdefault("security", [])
        return () if rule.is_unauthenticated else (401,)
    operation.setdefault(
        "security",
        [
            {name: [rule.scope] if rule.scope is not None and _has_scope(scheme, rule.scope) else []}
            for name, scheme in schemes.items()
        ],
    )
    operation[ROLES_EXTENSION] = sorted(map(str, rule.roles))
    if rule.scope is not None:
        operation[SCOPE_EXTENSION] = rule.scope
    return (401, 403)


def _has_scope(scheme: Mapping[str, Any], scope: str) -> bool:
    """Whether tokens of this scheme can be limited to the scope: a flow of `oauth2` lists its scopes."""
    if scheme.get("type") != "oauth2":
        return scheme.get("type") in _SCOPED_TYPES
    return any(scope in flow.get("scopes", {}) for flow in scheme.get("flows", {}).values())


def describe_challenge(responses: Mapping[str, Any]) -> None:
    """Add the header `WWW-Authenticate` to the description of 401."""
    response = responses.get("401")
    if isinstance(response, dict) and "$ref" not in response:
        response.setdefault("headers", {}).setdefault("WWW-Authenticate", dict(_CHALLENGE))
