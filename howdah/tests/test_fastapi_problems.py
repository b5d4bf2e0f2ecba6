"""Errors are returned as problem details, whose members may have any type."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from fastapi import Depends, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select, text

from howdah import Database, NestedTransaction, errors, uuid7
from howdah.fastapi import (
    HTTP_STATUS_BY_ERROR,
    DbSession,
    ProblemException,
    problem_response,
)
from howdah_tests.support.fastapi_apps import USERS, asgi_client, create_app, create_bare_app, http_client
from howdah_tests.support.sample_models import Order, User


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    names: dict[str, int] = {}


async def test_members_may_be_uuids_of_the_driver() -> None:
    app, key = create_bare_app(), uuid7()

    @app.get("/")
    async def fail() -> Response:
        return problem_response(409, "in-use", account_id=key, others=[key], by_key={str(key): Decimal("1.5")})

    async with asgi_client(app) as client:
        answer = await client.get("/")
    assert answer.status_code == 409
    assert UUID(answer.json()["account_id"]) == key
    assert answer.json()["others"] == [str(key)]


@pytest.mark.parametrize(
    ("detail", "errors"),
    [
        ({1: "a", None: "b"}, {"1": "a", "null": "b"}),
        ([UUID(int=1), {"left"}], [str(UUID(int=1)), ["left"]]),
        ([Strict(names={"a": 1})], [{"names": {"a": 1}}]),
    ],
)
async def test_the_detail_of_an_http_exception_may_be_anything_that_fastapi_encodes(detail: Any, errors: Any) -> None:
    app = create_bare_app()

    @app.get("/")
    async def fail() -> None:
        raise HTTPException(409, detail)

    async with asgi_client(app) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["errors"]) == (409, errors)


@pytest.mark.parametrize(
    "body",
    [b'{"\\ud800": 1}', b'{"names": {"\\ud800": "x"}}', b'{"names": {"a": "\\ud800"}}', b'["\\ud800"]', b'"\\udfff"'],
)
async def test_a_surrogate_in_a_body_is_422(body: bytes) -> None:
    app = create_bare_app()

    @app.post("/")
    async def create(body: Strict) -> None: ...

    async with asgi_client(app) as client:
        answer = await client.post("/", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]


class UserIn(BaseModel):
    email: str
    name: str


@pytest.mark.parametrize("case", ["unique", "foreign key", "not null", "check", "too long", "nul", "number"])
async def test_an_error_of_the_database_is_a_problem_without_values_and_sql(
    committed_database: Database, case: str
) -> None:
    app = create_app(committed_database)
    rows: dict[str, tuple[Any, int, str]] = {
        "unique": (User(email="a@x", name="secret"), 409, "unique-violation"),
        "foreign key": (Order(user_id=uuid7()), 409, "foreign-key-violation"),
        "not null": (User(email="b@x"), 422, "not-null-violation"),
        "check": (User(email="b@x", name="secret", age=-1), 422, "check-violation"),
        "too long": (User(email="b@x", name="secret" * 10), 422, "too-long"),
        "nul": (User(email="b@x", name="secret\0"), 422, "invalid-text"),
        "number": (User(email="b@x", name="secret", age=2**40), 422, "out-of-range"),
    }
    row, status, code = rows[case]

    @app.post(USERS)
    async def create(db: DbSession) -> None:
        db.add(User(email="a@x", name="a"))
        await db.flush()
        db.add(row)

    async with http_client(app) as client:
        response = await client.post(USERS)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:howdah:problem:{code}"
    assert problem["status"] == status
    assert problem["title"]
    assert "secret" not in response.text
    assert "INSERT" not in response.text


async def test_an_integrity_error_without_constraint_and_column_has_a_detail(committed_database: Database) -> None:
    app = create_app(committed_database)

    @app.post(USERS)
    async def create(db: DbSession) -> None:
        await db.execute(text("DO $$ BEGIN RAISE 'secret' USING ERRCODE = 'unique_violation'; END $$"))

    async with http_client(app) as client:
        response = await client.post(USERS)
    assert (response.status_code, response.json()["detail"]) == (409, "the database rejected the row")


async def test_an_exhausted_pool_is_503_with_retry_after(committed_url: str) -> None:
    async with Database(committed_url, pool_size=1, max_overflow=0, pool_timeout=0.1) as database:
        app = create_app(database)

        @app.get("/")
        async def read(db: DbSession) -> int:
            one: int = (await db.execute(text("SELECT 1"))).scalar_one()
            return one

        async with http_client(app) as client:
            async with database.engine.connect():
                response = await client.get("/")
            assert response.status_code == 503
            assert response.headers["retry-after"] in {"1", "2", "3"}
            assert response.json()["type"] == "urn:howdah:problem:pool-exhausted"
            assert (await client.get("/")).json() == 1


async def test_validation_http_and_unexpected_errors_are_problems(committed_database: Database) -> None:
    app = create_app(committed_database)

    @app.post(USERS)
    async def create(body: UserIn) -> None:
        raise ZeroDivisionError("secret")

    async with http_client(app) as client:
        invalid = await client.post(USERS, json={"email": "a"})
        unknown = await client.get("/nowhere")
        bug = await client.post(USERS, json={"email": "a", "name": "b"})
        unparsable = await client.post(USERS, content=b'{"email": ', headers={"content-type": "application/json"})
    assert (invalid.status_code, invalid.json()["errors"][0]["loc"]) == (422, ["body", "name"])
    assert unknown.status_code == 404
    assert (bug.status_code, bug.json()["type"]) == (500, "urn:howdah:problem:internal-error")
    assert "secret" not in bug.text
    assert unparsable.status_code == 422
    for response in (invalid, unknown, bug, unparsable):
        assert response.headers["content-type"] == "application/problem+json"


async def test_an_error_in_a_body_that_several_dependencies_take_is_shown_once(committed_database: Database) -> None:
    app = create_app(committed_database)

    async def check(body: UserIn) -> None: ...

    @app.post(USERS, dependencies=[Depends(check)])
    async def create(body: UserIn) -> None: ...

    async with http_client(app) as client:
        response = await client.post(USERS, json={"email": 1})
    assert [each["loc"] for each in response.json()["errors"]] == [["body", "email"], ["body", "name"]]


async def test_misuse_at_run_time_is_an_internal_error(committed_database: Database) -> None:
    app = create_app(committed_database)

    @app.get("/")
    async def read(request: Request) -> None:
        raise NestedTransaction("inside")

    async with http_client(app) as client:
        response = await client.get("/")
    assert (response.status_code, response.json()["type"]) == (500, "urn:howdah:problem:internal-error")


def test_every_error_has_a_status_or_is_an_internal_error() -> None:
    internal_errors = {
        errors.HowdahError,
        errors.ViewCompileError,
        errors.MigrationBlocked,
        errors.PoolsTooLarge,
        errors.MultipleRowsFound,
        errors.UnknownAttribute,
        errors.NestedTransaction,
        errors.DatabaseError,
        errors.IntegrityViolation,
        errors.InvalidStatement,
        errors.ServerFault,
        errors.EmbeddedPostgresError,
        errors.InvalidUrl,
    }
    all_errors = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.HowdahError)}
    with_status = {cls for cls in all_errors if any(base in HTTP_STATUS_BY_ERROR for base in cls.__mro__)}
    assert all_errors - with_status == internal_errors


async def test_a_raised_problem_rolls_back_and_a_returned_one_commits(database: Database) -> None:
    app, key = create_bare_app(database), uuid7()

    @app.post("/raise")
    async def reject(db: DbSession) -> None:
        db.add(User(email="raised@x", name="a"))
        await db.flush()
        raise ProblemException(409, "sold-out", "the item is sold out", headers={"Retry-After": "60"}, item=key)

    @app.post("/return")
    async def answer(db: DbSession) -> Response:
        db.add(User(email="returned@x", name="a"))
        return problem_response(409, "sold-out")

    async with asgi_client(app) as client:
        raised, returned = await client.post("/raise"), await client.post("/return")
    assert (raised.status_code, returned.status_code) == (409, 409)
    assert (raised.headers["retry-after"], raised.headers["content-type"]) == ("60", "application/problem+json")
    assert raised.json() == {
        "type": "urn:howdah:problem:sold-out",
        "title": "Conflict",
        "status": 409,
        "detail": "the item is sold out",
        "item": str(key),
    }
    async with database.session() as session:
        assert (await session.scalars(select(User.email))).all() == ["returned@x"]


def test_a_problem_needs_a_status_of_an_error_and_keeps_its_own_members() -> None:
    with pytest.raises(ValueError, match="from 400 on, not 200"):
        ProblemException(200, "fine", "it is fine")
    with pytest.raises(TypeError, match="the member type"):
        ProblemException(409, "sold-out", "it is sold out", type="about:blank")


@pytest.mark.parametrize("status", [429, 503])
async def test_a_problem_that_asks_for_a_retry_has_a_random_wait_unless_the_caller_sets_one(status: int) -> None:
    """Clients that were rejected at the same time must not return at the same time."""
    waits = {problem_response(status, "busy").headers["retry-after"] for _ in range(200)}
    assert waits == {"1", "2", "3"}
    assert problem_response(status, "busy", headers={"retry-after": "60"}).headers["retry-after"] == "60"
    app = create_bare_app()

    @app.get("/")
    async def fail() -> None:
        raise HTTPException(status)

    async with asgi_client(app) as client:
        assert (await client.get("/")).headers["retry-after"] in waits
    assert "retry-after" not in problem_response(409, "conflict").headers


async def test_a_fault_of_the_server_is_503_and_is_logged_for_the_operator(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_bare_app(database)

    @app.get("/{sqlstate}")
    async def fail(sqlstate: str, db: DbSession) -> None:
        await db.execute(text(f"DO $$ BEGIN RAISE 'no space' USING ERRCODE = '{sqlstate}'; END $$"))

    async with asgi_client(app) as client:
        answers = {
            code: await client.get(f"/{code}") for code in ("53100", "53200", "58030", "55006", "40003", "72000")
        }
    assert {code: answer.status_code for code, answer in answers.items()} == dict.fromkeys(answers, 503)
    assert not any("no space" in answer.text for answer in answers.values())
    logged = [each.getMessage() for each in caplog.records if each.name == "howdah.database"]
    assert [any(code in line for line in logged) for code in answers] == [True, True, True, False, False, False]
    assert all("no space" in line for line in logged)
