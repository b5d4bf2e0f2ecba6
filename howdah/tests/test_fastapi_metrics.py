"""`/metrics`, `/healthz` and `/readyz` of an application, its request log, and the log's configuration."""

import asyncio
import json
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import ResponseValidationError
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel, TypeAdapter, ValidationError
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Coalescer, Database, JsonView, JsonViewReader, Unavailable, UniqueViolation
from howdah.fastapi import Resource, configure_app
from howdah.logs import format_exception
from howdah.metrics import BatchCollector, PoolCollector
from howdah.testing import open_client
from howdah_tests.support.sample_models import User

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


class UserOut(BaseModel):
    id: UUID


user_reader = Resource("user", JsonView(User, UserOut).open)


@asynccontextmanager
async def client_of(app: FastAPI, database: Database, **databases: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(app, {"main": database, **databases}, is_serial=False) as client:
        yield client


async def read_metrics(client: httpx.AsyncClient) -> dict[str, float]:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = [line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines if name.startswith("howdah_")}


def create_app(prefix: str = "") -> FastAPI:
    app = FastAPI()
    router = APIRouter(prefix="/users")

    @router.get("/{user_id}")
    async def get_user(user_id: UUID, users: Annotated[JsonViewReader[User], Depends(user_reader)]) -> str:
        await users.get(user_id)
        return "found"

    @router.get("/{user_id}/broken")
    async def fail() -> None:
        raise LookupError("a secret")

    app.include_router(router, prefix=prefix)
    configure_app(app, database=lambda: Database(NOWHERE), resources=[user_reader])
    return app


async def test_metrics_of_two_applications_in_one_process_are_separate(real_database: Database) -> None:
    one, other = create_app("/one"), create_app("/other")
    async with client_of(one, real_database) as client, client_of(other, real_database) as other_client:
        for _ in range(3):
            await client.get(f"/one/users/{UUID(int=1)}")
        metrics, other_metrics = await read_metrics(client), await read_metrics(other_client)
    counted = 'howdah_requests_total{method="GET",route="/one/users/{user_id}",status="404"}'
    assert metrics[counted] == 3
    assert metrics['howdah_request_seconds_count{method="GET",route="/one/users/{user_id}"}'] == 3
    assert metrics['howdah_batch_size_sum{queue="user"}'] == 3
    assert not any("/one" in name for name in other_metrics)
    assert other_metrics['howdah_batch_size_sum{queue="user"}'] == 0
    assert other_metrics['howdah_pool_connections{database="main",state="limit"}'] == 30


class _Broken:
    def status(self) -> str:
        raise LookupError


class _BrokenProperty:
    @property
    def status(self) -> str:
        raise LookupError


async def test_a_resource_with_another_status_has_no_metrics(real_database: Database) -> None:
    @asynccontextmanager
    async def open_broken(_database: Database) -> AsyncIterator[_Broken]:
        yield _Broken()

    @asynccontextmanager
    async def open_property(_database: Database) -> AsyncIterator[_BrokenProperty]:
        yield _BrokenProperty()

    app = FastAPI()
    resources: list[Resource[Any]] = [Resource("broken", open_broken), Resource("property", open_property), user_reader]
    configure_app(app, database=lambda: Database(NOWHERE), resources=resources)
    async with client_of(app, real_database) as client:
        names = {name for name in await read_metrics(client) if name.startswith("howdah_batch_waiters")}
    assert names == {'howdah_batch_waiters{queue="user"}'}


@pytest.mark.parametrize("root_path", ["", "/api"])
async def test_routes_of_a_mounted_application_have_the_path_of_the_mount(
    real_database: Database, root_path: str
) -> None:
    outer, inner = create_app(), create_app("/v1")
    outer.root_path = root_path
    outer.mount("/inner/{tenant}", inner)
    async with client_of(outer, real_database) as client:
        for path in (f"/inner/a/v1/users/{UUID(int=1)}", "/inner/b/nothing", "/nothing"):
            assert (await client.get(f"{root_path}{path}")).status_code == 404
        names = {name for name in await read_metrics(client) if name.startswith("howdah_requests_total")}
    assert names == {
        f'howdah_requests_total{{method="{method}",route="{route}",status="404"}}'
        for method, route in (
            ("GET", "/inner/{tenant}/v1/users/{user_id}"),
            ("GET", "/inner/{tenant}"),
            ("any", "unmatched"),
        )
    }


async def test_a_method_that_a_path_does_not_have_counts_for_the_path(real_database: Database) -> None:
    outer, inner = create_app(), create_app()
    outer.mount("/inner/{tenant}", inner)
    async with client_of(outer, real_database) as client:
        for path in ("/healthz", "/inner/a/healthz"):
            for method in ("PUT", "PROPFIND"):
                assert (await client.request(method, path)).status_code == 405
        names = {name for name in await read_metrics(client) if name.startswith("howdah_requests_total")}
    assert names == {
        f'howdah_requests_total{{method="{method}",route="{route}",status="405"}}'
        for method in ("PUT", "any")
        for route in ("/healthz", "/inner/{tenant}/healthz")
    }


async def test_an_unexpected_error_is_counted_and_logged_without_local_variables(
    real_database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    async with client_of(create_app(), real_database) as client:
        answer = await client.get(f"/users/{UUID(int=1)}/broken?private=yes", headers={"X-Request-ID": "mine"})
        metrics = await read_metrics(client)
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
    assert metrics['howdah_requests_total{method="GET",route="/users/{user_id}/broken",status="500"}'] == 1
    logged = capsys.readouterr().out
    assert "LookupError: a secret" in logged
    assert "mine" in logged
    assert "locals" not in logged
    assert "private" not in logged


async def test_the_values_of_a_row_in_an_error_of_postgresql_are_not_logged(session: AsyncSession) -> None:
    email = "\n".join(["ada@x", "y"])

    async def add_twice() -> None:
        try:
            await session.execute(insert(User), [{"email": email, "name": "Ada"}] * 2)
        except UniqueViolation:
            raise ExceptionGroup("several", [LookupError()]) from None

    with pytest.raises(ExceptionGroup) as raised:
        await add_twice()
    assert f"Key (email)=({email})" in "".join(traceback.format_exception(raised.value.__context__))  # the control
    raised.value.__suppress_context__ = False
    text = format_exception(raised.value)
    assert "DETAIL:  (not logged)" in text
    assert "Key (email)" not in text
    assert "LookupError" in text


async def test_values_in_nested_and_validation_errors_are_not_logged(session: AsyncSession) -> None:
    email = "\n".join(["ada@x", "y".join("pq")])

    with pytest.raises(UniqueViolation) as rejected:
        await session.execute(insert(User), [{"email": email, "name": "Ada"}] * 2)
    with pytest.raises(ValidationError) as invalid:
        TypeAdapter(dict[str, int]).validate_python({"user": email})
    response = ResponseValidationError([{"type": "int_type", "loc": ("response", "id"), "input": email}])
    errors = [rejected.value, invalid.value, response]
    nested = ExceptionGroup("several", [ExceptionGroup("inner", errors)])
    assert "".join(traceback.format_exception(nested)).count("pyq") >= 3  # the control
    text = format_exception(nested)
    assert "pyq" not in text
    assert "user: int_parsing (the values are not logged)" in text
    assert "response.id: int_type (the values are not logged)" in text


async def test_a_request_of_a_mounted_application_has_one_id_and_one_log_entry(
    real_database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    outer, inner = create_app(), create_app()
    outer.mount("/inner", inner)
    async with client_of(outer, real_database) as client:
        found = await client.get(f"/inner/users/{UUID(int=1)}", headers={"X-Request-ID": "found"})
        broken = await client.get(f"/inner/users/{UUID(int=1)}/broken", headers={"X-Request-ID": "broken"})
    assert (found.status_code, found.headers.get_list("x-request-id")) == (404, ["found"])
    assert (broken.status_code, broken.headers.get_list("x-request-id")) == (500, ["broken"])
    logged = capsys.readouterr().out
    assert logged.count("request_id=found") == 1
    assert logged.count("request_id=broken") == 2  # the error, and the request


async def test_without_the_request_log_an_unexpected_error_is_raised_to_the_server_and_counted(
    real_database: Database,
) -> None:
    app = FastAPI()

    @app.get("/")
    async def fail() -> None:
        raise LookupError

    configure_app(app, database=lambda: Database(NOWHERE), request_log=False)
    async with client_of(app, real_database) as client:
        with pytest.raises(LookupError):
            await client.get("/")
        assert 'howdah_requests_total{method="GET",route="/",status="500"}' in await read_metrics(client)


async def test_a_readiness_check_with_an_unexpected_error_is_a_503_and_is_logged(
    real_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(database: Database) -> str | None:
        raise LookupError("of the check")

    app = FastAPI()
    configure_app(app, database=lambda: Database(NOWHERE), readiness_checks=[check])
    async with client_of(app, real_database) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, "LookupError")
    assert "of the check" not in answer.text
    [record] = [each for each in caplog.records if each.name == "howdah.readiness"]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


async def test_the_service_is_ready_if_all_databases_are_reachable_and_the_checks_pass(
    real_database: Database,
) -> None:
    answers: list[str | Exception | None] = [None, "the schema is old", Unavailable("not now"), None]

    async def check(database: Database) -> str | None:
        assert database.scope_key() != real_database.scope_key()  # with a short lock_timeout
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    app = FastAPI()
    configure_app(
        app,
        database=lambda: Database(NOWHERE),
        databases={"reports": lambda: Database(NOWHERE)},
        readiness_checks=[check],
    )
    async with Database(NOWHERE) as nowhere:
        async with client_of(app, real_database, reports=real_database) as client:
            responses = [await client.get("/readyz") for _ in range(3)]
            assert [each.status_code for each in responses] == [200, 503, 503]
            assert [each.json().get("detail") for each in responses] == [None, "the schema is old", "Unavailable"]
            assert responses[1].headers["retry-after"] in {"1", "2", "3"}
        async with client_of(app, real_database, reports=nowhere) as client:
            assert (await client.get("/readyz")).json()["detail"] == "ConnectionFailed"
            assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert answers == [None]  # the check isn't called if a database can't be reached


async def test_a_locked_table_does_not_change_the_result_of_a_readiness_check(
    real_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    reasons: list[str | None] = [None, "the schema is old"]

    async def check(database: Database) -> str | None:
        async with database.session(read_only=True) as session:
            await session.execute(text("SELECT 'pg_description'::regclass, count(*) FROM pg_description"))
        return reasons.pop(0)

    app, other = FastAPI(), FastAPI()
    for each in (app, other):
        configure_app(each, database=lambda: Database(NOWHERE), readiness_checks=[check])
    async with client_of(app, real_database) as client, client_of(other, real_database) as new_client:
        for status, detail in ((200, None), (503, "the schema is old")):
            assert (await client.get("/readyz")).status_code == status
            async with real_database.session() as session:
                await session.execute(text("LOCK TABLE pg_description IN ACCESS EXCLUSIVE MODE"))
                started = asyncio.get_running_loop().time()
                locked = await client.get("/readyz")
                assert asyncio.get_running_loop().time() - started < 3  # the database's lock_timeout is 5 s
                unknown = await new_client.get("/readyz")
            assert (locked.status_code, locked.json().get("detail")) == (status, detail)
            assert (unknown.status_code, unknown.json()["detail"]) == (503, "LockTimeout")
    assert reasons == []
    assert "waits for a lock" in caplog.text


async def test_a_readiness_check_that_takes_too_long_is_a_503(
    real_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("howdah.fastapi.health._MAX_SECONDS", 0.05)

    async def check(database: Database) -> None:
        await asyncio.Event().wait()

    app = FastAPI()
    configure_app(app, database=lambda: Database(NOWHERE), readiness_checks=[check])
    async with client_of(app, real_database) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, "TimeoutError")


def test_the_fixture_client_needs_the_fixture_app(request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.UsageError, match="override the fixture `app`"):
        request.getfixturevalue("app")


async def test_parts_can_be_left_out(real_database: Database) -> None:
    app = FastAPI()
    configure_app(app, database=lambda: Database(NOWHERE), health=False, metrics=False, request_log=False)
    async with client_of(app, real_database) as client:
        answers = [await client.get(path) for path in ("/healthz", "/readyz", "/metrics")]
    assert [answer.status_code for answer in answers] == [404] * 3
    assert "x-request-id" not in answers[0].headers


@pytest.mark.parametrize(
    ("module", "option"), [("prometheus_client", "metrics=False"), ("structlog", "request_log=False")]
)
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str, option: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"install howdah\[.*{option}"):
        configure_app(FastAPI(), database=lambda: Database(NOWHERE))


async def test_the_collectors_work_with_any_registry(real_database: Database) -> None:
    async def apply(items: list[int]) -> list[int]:
        return items

    registry = CollectorRegistry()
    async with Coalescer[int, int](apply) as coalescer:  # type: ignore[arg-type]
        registry.register(PoolCollector({"main": real_database}))
        registry.register(BatchCollector({"numbers": coalescer}))
        await asyncio.gather(*map(coalescer.submit, range(5)))
        text = generate_latest(registry).decode()
    assert 'howdah_pool_connections{database="main",state="in_use"} 0.0' in text
    assert 'howdah_batch_size_bucket{le="4.0",queue="numbers"} 0.0' in text
    assert 'howdah_batch_size_bucket{le="8.0",queue="numbers"} 1.0' in text
    assert 'howdah_batch_size_sum{queue="numbers"} 5.0' in text


def test_logs_are_lines_of_json_with_the_ids_of_the_trace_and_without_local_variables() -> None:
    code = """
import logging, structlog
from opentelemetry import trace
from howdah.logs import configure_logging
for name in ("uvicorn", "uvicorn.access"):
    logging.getLogger(name).addHandler(logging.StreamHandler())
configure_logging("json")
context = trace.SpanContext(1, 2, is_remote=False)
with trace.use_span(trace.NonRecordingSpan(context)):
    structlog.get_logger("mine").info("structured", user=1)
logging.getLogger("theirs").warning("plain %s", "text")
logging.getLogger("uvicorn.error").info("started")
logging.getLogger("uvicorn.access").info("127.0.0.1")
logging.getLogger("alembic").info("verbose")
def fail(password):
    try:
        raise LookupError("why")
    except LookupError:
        structlog.get_logger("mine").exception("failed")
fail("se" + "cret")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("theirs").exception("failed")
class Broken:
    def __repr__(self):
        raise LookupError
structlog.get_logger("mine").info("odd", large=2**70, keys={1: 2}, half="\\ud800", broken=Broken(), plain=[1.5])
logging.getLogger("theirs").info("\\ud800")
"""
    finished = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    assert [(line["event"], line["logger"]) for line in lines] == [
        ("structured", "mine"),
        ("plain text", "theirs"),
        ("started", "uvicorn.error"),
        ("failed", "mine"),
        ("failed", "theirs"),
        ("odd", "mine"),
        ("\\ud800", "theirs"),
    ]
    assert (lines[0]["trace_id"], lines[0]["span_id"], lines[0]["user"]) == ("0" * 31 + "1", "0" * 15 + "2", 1)
    assert "trace_id" not in lines[1]
    assert "LookupError: why" in lines[3]["exception"]
    assert "ZeroDivisionError: division by zero" in lines[4]["exception"]
    odd = {name: lines[5][name] for name in ("large", "keys", "half", "broken", "plain")}
    assert odd == {
        "large": str(2**70),
        "keys": {"1": 2},
        "half": "\\ud800",
        "broken": "<Broken: LookupError>",
        "plain": [1.5],
    }
    assert "secret" not in finished.stderr
