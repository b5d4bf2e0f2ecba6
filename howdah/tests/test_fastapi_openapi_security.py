"""Security in the OpenAPI description."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Security
from fastapi.openapi.models import OpenAPI
from fastapi.security import HTTPBasic

from howdah.fastapi import PUBLIC, allow, configure_app
from howdah_tests.support.principals import CUSTOMER, OPERATOR, create_protected_app, unreachable_database

SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "sign_in": {"type": "oauth2", "flows": {"password": {"tokenUrl": "/sign-in", "scopes": {"orders:read": "Read"}}}},
}


async def answer() -> None: ...


def add_routes(app: FastAPI) -> None:
    router = APIRouter(prefix="/orders", dependencies=[allow(OPERATOR, CUSTOMER, scope="orders:read")])
    router.get("/{order_id}")(_with_key)
    app.include_router(router)
    app.post("/sign-in", dependencies=[PUBLIC])(answer)
    app.delete("/orders", dependencies=[allow(OPERATOR)])(answer)
    app.get("/basic", dependencies=[Security(HTTPBasic()), allow(OPERATOR)])(answer)


async def _with_key(order_id: int) -> None: ...


def describe(**options: Any) -> dict[str, Any]:
    description: dict[str, Any] = create_protected_app(add_routes, **options).openapi()
    OpenAPI.model_validate(description)
    return description


def test_an_operation_has_its_security_roles_and_scope() -> None:
    paths = describe(security_schemes=SCHEMES)["paths"]
    read = paths["/orders/{order_id}"]["get"]
    assert read["security"] == [{"token": []}, {"sign_in": ["orders:read"]}]
    assert (read["x-roles"], read["x-scope"]) == (["customer", "operator"], "orders:read")
    delete = paths["/orders"]["delete"]
    assert delete["security"] == [{"token": []}, {"sign_in": []}]
    assert delete["x-roles"] == ["operator"]
    assert "x-scope" not in delete


def test_an_operation_has_its_rejections() -> None:
    paths = describe()["paths"]
    read = paths["/orders/{order_id}"]["get"]["responses"]
    assert [*read] == ["200", "401", "403", "404", "422"]
    assert "application/problem+json" in read["403"]["content"]
    assert [*read["401"]["headers"]] == ["WWW-Authenticate"]
    assert [*paths["/sign-in"]["post"]["responses"]] == ["200", "401"]
    assert not {"401", "403"} & paths["/healthz"]["get"]["responses"].keys()


def test_a_public_operation_has_no_security() -> None:
    paths = describe()["paths"]
    for path, method in (("/sign-in", "post"), ("/healthz", "get"), ("/metrics", "get")):
        assert paths[path][method]["security"] == []
        assert "x-roles" not in paths[path][method]


def test_schemes_are_in_the_components() -> None:
    assert describe()["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    description = describe(security_schemes=SCHEMES)
    # FastAPI's own dependencies keep theirs
    assert description["components"]["securitySchemes"] == {**SCHEMES, "HTTPBasic": {"type": "http", "scheme": "basic"}}
    assert description["paths"]["/basic"]["get"]["security"] == [{"HTTPBasic": []}]
    with pytest.raises(ValueError, match="security_schemes needs a scheme"):
        describe(security_schemes={})


def test_without_authenticate_the_description_has_no_security() -> None:
    app = FastAPI()
    configure_app(app, database=unreachable_database)
    app.get("/", dependencies=[PUBLIC])(answer)
    description = app.openapi()
    assert "securitySchemes" not in description["components"]
    assert "security" not in description["paths"]["/"]["get"]
