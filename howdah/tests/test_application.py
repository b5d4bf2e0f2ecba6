"""`configure_app`: what it opens and closes, and for which application."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, Self
from uuid import UUID

import anyio
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from pydantic import BaseModel
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.routing import Mount

from howdah import AsyncRepository, Database, JsonView, JsonViewReader, bulk
from howdah.fastapi import (
    DbSession,
    Resource,
    add_error_handlers,
    configure_app,
    database_dependency,
    get_database,
    json_response,
    session_dependency,
)
from howdah.testing import open_client
from howdah_tests.support.sample_models import User
from howdah_tests.support.sample_rows import user_rows


class UserOut(BaseModel):
    id: UUID
    name: str


user_reader = Resource("user", JsonView(User, UserOut).open)
UserReader = Annotated[JsonViewReader[User], Depends(user_reader)]

router = APIRouter(prefix="/users")


@router.get("/{user_id}")
async def get_user(request: Request, user_id: UUID, users: UserReader) -> Any:
    return json_response(await users.get(user_id), request)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application after its startup, with its own databases."""
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(app.router.lifespan_context(app))

        async def app_with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": {**(state or {})}}, receive, send)

        transport = httpx.ASGITransport(app_with_state)
        yield await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test"))


async def connect_websocket(app: FastAPI) -> list[str]:
    """Start the application, connect to its WebSocket `/`, and return the texts that it sends."""
    async with app.router.lifespan_context(app) as state:
        scope = {
            "type": "websocket",
            "path": "/",
            "query_string": b"",
            "headers": [],
            "state": {**(state or {})},
        }
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return [message["text"] for message in sent if message["type"] == "websocket.send"]


class Recorder:
    """Factories that record what they open and close."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.events: list[str] = []

    def database(self, name: str) -> Callable[[], Database]:
        events = self.events

        class Recorded(Database):
            async def __aenter__(self) -> Self:
                events.append(f"open {name}")
                return self

            async def close(self) -> None:
                events.append(f"close {name}")
                await super().close()

        return lambda: Recorded(self.url)

    def resource(self, name: str, *, database: str | None = None, fails: bool = False) -> Resource[str]:
        @asynccontextmanager
        async def open_it(_database: Database) -> AsyncIterator[str]:
            self.events.append(f"open {name}")
            if fails:
                raise LookupError(name)
            yield f"the {name}"
            self.events.append(f"close {name}")

        return Resource(name, open_it, database=database)


@pytest.fixture
def recorder(database_url: str) -> Recorder:
    return Recorder(database_url)


async def test_everything_is_opened_at_startup_in_order_and_closed_in_reverse(recorder: Recorder) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        recorder.events.append("open own")
        yield {"own": "value"}
        recorder.events.append("close own")

    app = FastAPI(lifespan=lifespan)
    first, second = recorder.resource("first"), recorder.resource("second", database="reports")
    configure_app(
        app,
        database=recorder.database("main"),
        databases={"reports": recorder.database("reports")},
        resources=[first, second],
    )

    @app.get("/")
    async def read(request: Request, value: Annotated[str, Depends(second)]) -> list[str]:
        return [value, request.state.own]

    assert recorder.events == []
    async with running(app) as client:
        assert recorder.events == [f"open {name}" for name in ("main", "reports", "first", "second", "own")]
        recorder.events.clear()
        assert (await client.get("/")).json() == ["the second", "value"]
    assert recorder.events == [f"close {name}" for name in ("own", "second", "first", "reports", "main")]


async def test_a_startup_that_fails_halfway_closes_what_was_opened(recorder: Recorder) -> None:
    app = FastAPI()
    resources = [recorder.resource("good"), recorder.resource("bad", fails=True), recorder.resource("never")]
    configure_app(app, database=recorder.database("main"), resources=resources)
    with pytest.raises(LookupError, match="bad"):
        async with running(app):
            pass
    assert recorder.events == ["open main", "open good", "open bad", "close main"]


async def test_an_application_without_the_resource_of_a_route_does_not_start(database_url: str) -> None:
    app = FastAPI()
    configure_app(app, database=lambda: Database(database_url))
    app.include_router(router, prefix="/api")
    with pytest.raises(RuntimeError, match=r"/api/users/\{user_id\}.*'user'.*resources="):
        async with running(app):
            pass
    app.dependency_overrides[user_reader] = lambda: None
    async with running(app):
        pass


async def test_a_resource_that_is_not_open_says_what_to_add(database_url: str) -> None:
    app = FastAPI()

    @app.websocket("/")
    async def answer(websocket: WebSocket, users: UserReader) -> None: ...

    configure_app(app, database=lambda: Database(database_url))
    with pytest.raises(RuntimeError, match=r"'user'.*resources="):
        await connect_websocket(app)


async def test_a_resource_of_an_application_that_was_not_started_says_so(database_url: str) -> None:
    app = FastAPI()
    app.include_router(router)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(RuntimeError, match="its lifespan must have run"):
            await client.get(f"/users/{UUID(int=1)}")


async def test_resources_and_databases_are_available_on_websockets(recorder: Recorder) -> None:
    app = FastAPI()
    resource = recorder.resource("greeting")
    configure_app(app, database=recorder.database("main"), resources=[resource])

    @app.websocket("/")
    async def answer(
        websocket: WebSocket,
        greeting: Annotated[str, Depends(resource)],
        database: Annotated[Database, Depends(get_database)],
    ) -> None:
        await websocket.accept()
        async with database.session() as session:
            await websocket.send_text(f"{greeting}, {await session.scalar(text('SELECT 1'))}")
        await websocket.close()

    assert await connect_websocket(app) == ["the greeting, 1"]


async def test_a_session_of_a_named_database_commits_before_the_response(
    committed_database: Database, committed_url: str
) -> None:
    app = FastAPI()
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    configure_app(
        app, database=lambda: Database(nowhere), databases={"reports": lambda: Database(committed_url)}, metrics=False
    )
    reports_session = Annotated[AsyncSession, session_dependency("reports")]
    read_only_session = Annotated[AsyncSession, session_dependency("reports", read_only=True)]

    @app.post("/users")
    async def create(db: reports_session) -> None:
        db.add(User(email="a@x", name="a"))

    @app.get("/read-only")
    async def is_read_only(db: read_only_session) -> str:
        setting: str = await db.scalar(text("SHOW transaction_read_only"))
        return setting

    @app.get("/size")
    async def size(reports: Annotated[Database, database_dependency("reports")]) -> int:
        return reports.pool_status().size

    async with running(app) as client:
        assert (await client.post("/users")).status_code == 200
        async with committed_database.session() as session:
            assert await AsyncRepository(session, User).count() == 1
        assert (await client.post("/users")).status_code == 409
        assert (await client.get("/read-only")).json() == "on"
        assert (await client.get("/size")).json() == 20
        responses = (await client.get("/openapi.json")).json()["paths"]["/users"]["post"]["responses"]
        assert {"409", "503"} <= responses.keys()


async def test_a_mounted_application_has_its_own_database_and_resources(recorder: Recorder) -> None:
    outer, inner, plain = FastAPI(), FastAPI(), FastAPI()
    configure_app(inner, database=recorder.database("inner"), metrics=False)
    configure_app(outer, database=recorder.database("outer"), metrics=False)
    add_error_handlers(plain)
    databases: dict[str, Database] = {}

    def add_route(app: FastAPI, name: str) -> None:
        @app.get("/name")
        async def find(database: Annotated[Database, Depends(get_database)]) -> None:
            databases[name] = database

    for app, name in ((outer, "outer"), (inner, "inner"), (plain, "plain")):
        add_route(app, name)
    outer.mount("/inner", inner)
    outer.mount("/plain", plain)
    async with running(outer) as client:
        assert recorder.events == ["open outer", "open inner"]
        for path in ("/inner/name", "/plain/name", "/name"):
            assert (await client.get(path)).status_code == 200
    assert recorder.events[2:] == ["close inner", "close outer"]
    assert databases["inner"] is not databases["outer"]
    assert databases["plain"] is databases["outer"]


async def test_an_application_in_a_router_or_in_another_mounted_application_is_opened(recorder: Recorder) -> None:
    outer, in_router, in_mount, plain, in_plain, on_host = (FastAPI() for _ in range(6))
    for name, app in {
        "outer": outer,
        "router": in_router,
        "mount": in_mount,
        "plain": in_plain,
        "host": on_host,
    }.items():
        configure_app(app, database=recorder.database(name), metrics=False, request_log=False)
    router = APIRouter()
    router.mount("/inner", in_router)
    outer.router.routes.append(Mount("/routes", routes=[Mount("/inner", app=in_mount)]))
    outer.mount("/plain", plain)
    plain.mount("/inner", in_plain)
    outer.host("api.test", on_host)
    outer.mount("/router", router)
    async with running(outer) as client:
        for path in ("/router/inner", "/routes/inner", "/plain/inner", "http://api.test"):
            assert (await client.get(f"{path}/readyz")).status_code == 200, path
    assert sorted(recorder.events[:5]) == ["open host", "open mount", "open outer", "open plain", "open router"]


async def test_an_unknown_resource_of_a_websocket_or_a_mounted_application_is_found_at_startup(
    recorder: Recorder,
) -> None:
    known, unknown = recorder.resource("known"), recorder.resource("unknown")
    for is_websocket in (True, False):
        app, inner = FastAPI(), FastAPI()
        configure_app(app, database=recorder.database("main"), resources=[known], request_log=False)
        if is_websocket:

            @app.websocket("/ws")
            async def talk(websocket: WebSocket, value: Annotated[str, Depends(unknown)]) -> None: ...
        else:

            @inner.get("/ws")
            async def read(value: Annotated[str, Depends(unknown)], other: Annotated[str, Depends(known)]) -> None: ...

            app.mount("/inner", inner)
        with pytest.raises(RuntimeError, match=r"^/ws: the application does not open the resource 'unknown'"):
            async with running(app):
                raise AssertionError


async def test_a_mounted_application_that_was_not_started_never_uses_the_outer_database(
    recorder: Recorder, real_database: Database
) -> None:
    """The outer application has a lifespan of its own, which doesn't run that of the mounted one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"database": real_database}

    outer, inner = FastAPI(lifespan=lifespan), FastAPI()
    configure_app(inner, database=recorder.database("inner"), request_log=False)

    @inner.get("/")
    async def read(db: DbSession) -> None: ...

    outer.mount("/inner", inner)
    async with running(outer) as client:
        with pytest.raises(RuntimeError, match="no open database"):
            await client.get("/inner/")


async def test_a_resource_can_get_another_factory_that_knows_the_settings(recorder: Recorder) -> None:
    app = FastAPI()
    declared, other = recorder.resource("declared"), recorder.resource("other")
    configure_app(app, database=recorder.database("main"), resources=[declared.using(other.factory)])

    @app.get("/")
    async def read(value: Annotated[str, Depends(declared)]) -> str:
        return value

    async with running(app) as client:
        assert (await client.get("/")).json() == "the other"


def test_mistakes_in_the_set_up_are_rejected(real_database: Database, recorder: Recorder) -> None:
    app = FastAPI()
    factory = recorder.database("main")
    with pytest.raises(TypeError, match="lambda: Database"):
        configure_app(app, database=real_database)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two resources have the name 'a'"):
        configure_app(app, database=factory, resources=[recorder.resource("a"), recorder.resource("a")])
    with pytest.raises(ValueError, match="uses the database 'reports'"):
        configure_app(app, database=factory, resources=[recorder.resource("a", database="reports")])
    with pytest.raises(ValueError, match="'main' is the name"):
        configure_app(app, database=factory, databases={"main": factory})
    configure_app(app, database=factory)
    with pytest.raises(RuntimeError, match="already called"):
        configure_app(app, database=factory)


async def test_a_lifespan_that_yields_a_second_database_is_rejected(
    real_database: Database, recorder: Recorder
) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"database": real_database}

    app = FastAPI(lifespan=lifespan)
    configure_app(app, database=recorder.database("main"))
    with pytest.raises(RuntimeError, match="remove it from the lifespan"):
        async with running(app):
            pass


# The fixture `client`


async def add_user(db: DbSession, email: str) -> UUID:
    user = User(email=email, name="Ada")
    db.add(user)
    await db.flush()
    return user.id


@pytest.fixture
def app(database_url: str) -> FastAPI:
    app = FastAPI()
    configure_app(app, database=lambda: Database(database_url), resources=[user_reader])
    app.include_router(router)
    app.post("/users", status_code=201)(add_user)
    return app


async def test_views_of_the_client_see_what_the_test_and_requests_have_written(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    user = User(email="test@x", name="Grace")
    session.add(user)
    await session.flush()
    assert (await client.get(f"/users/{user.id}")).json()["name"] == "Grace"
    created = (await client.post("/users?email=request@x")).json()
    assert (await client.get(f"/users/{created}")).json()["name"] == "Ada"
    assert {each.email for each in await session.scalars(select(User))} == {"test@x", "request@x"}
    assert (await client.post("/users?email=request@x")).status_code == 409
    assert (await client.get(f"/users/{created}")).status_code == 200


async def test_control_the_application_on_its_own_database_does_not_see_what_the_test_has_written(
    app: FastAPI, session: AsyncSession
) -> None:
    user = User(email="test@x", name="Grace")
    session.add(user)
    await session.flush()
    async with running(app) as client:
        assert (await client.get(f"/users/{user.id}")).status_code == 404


@pytest.mark.parametrize("run", [1, 2])
async def test_what_a_request_commits_is_rolled_back_after_the_test(client: httpx.AsyncClient, run: int) -> None:
    """In the second run the email would be taken."""
    assert (await client.post("/users?email=same@x")).status_code == 201


async def test_concurrent_requests_of_the_client_are_handled_one_after_the_other(client: httpx.AsyncClient) -> None:
    emails = [f"{n % 15}@x" for n in range(20)]
    answers = await asyncio.gather(*(client.post(f"/users?email={email}") for email in emails))
    assert sorted(answer.status_code for answer in answers) == [201] * 15 + [409] * 5
    read = await asyncio.gather(*(client.get(f"/users/{answer.json()}") for answer in answers[:15]))
    assert {answer.status_code for answer in read} == {200}


async def test_a_request_that_waits_for_a_later_one_is_refused_by_the_client_and_works_with_the_committed_client(
    app: FastAPI,
    client: httpx.AsyncClient,
    committed_client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("howdah.testing.clients._MAX_WAIT_SECONDS", 0.05)
    happened = asyncio.Event()

    @app.get("/wait")
    async def wait() -> None:
        async with asyncio.timeout(0.5):
            await happened.wait()

    @app.get("/happen")
    async def happen() -> None:
        happened.set()

    waiting = asyncio.create_task(client.get("/wait"))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="use `committed_client`"):
        await client.get("/happen")
    assert (await waiting).status_code == 500
    both = await asyncio.gather(committed_client.get("/wait"), committed_client.get("/happen"))
    assert [each.status_code for each in both] == [200, 200]


async def test_one_request_of_the_client_may_use_its_session_and_views_concurrently(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    @app.post("/many")
    async def use_both(db: DbSession, users: UserReader) -> tuple[int | None, int, int]:
        ids = (await bulk.insert_many(db, User, user_rows(50))).keys
        count, found, read = await asyncio.gather(
            db.scalar(select(func.count()).select_from(User)),
            users.get_many(ids),
            asyncio.gather(*map(users.get, ids)),
        )
        return count, len(found), len(read)

    assert (await client.post("/many")).json() == [50, 50, 50]


async def test_the_committed_client_commits(committed_client: httpx.AsyncClient, committed_url: str) -> None:
    created = (await committed_client.post("/users?email=a@x")).json()
    async with Database(committed_url) as other, other.session() as session:
        assert await session.get(User, UUID(created)) is not None


async def test_a_further_database_without_a_replacement_is_not_opened_in_a_test(real_database: Database) -> None:
    """It would be the real one."""
    app = FastAPI()
    configure_app(
        app, database=lambda: Database("postgresql://x"), databases={"reports": lambda: Database("postgresql://x")}
    )

    @app.get("/same")
    async def compare(
        main: Annotated[Database, Depends(get_database)], reports: Annotated[Database, database_dependency("reports")]
    ) -> bool:
        return main is reports

    with pytest.raises(RuntimeError, match="no database replaces the application's database 'reports'"):
        async with open_client(app, {"main": real_database}, is_serial=True):
            pass
    async with open_client(app, {"main": real_database, "reports": real_database}, is_serial=True) as client:
        assert (await client.get("/same")).json() is True
    assert real_database.session_factory  # it is not closed


async def test_a_client_of_an_application_that_is_not_configured_is_rejected(real_database: Database) -> None:
    with pytest.raises(RuntimeError, match="not set up by configure_app"):
        async with open_client(FastAPI(), {"main": real_database}, is_serial=True):
            pass


@pytest.fixture
async def client_with_task_group(real_database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """pytest-asyncio begins and ends it in different tasks."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield
            group.cancel_scope.cancel()

    app = FastAPI(lifespan=lifespan)
    configure_app(app, database=lambda: Database("postgresql://x"))
    async with open_client(app, {"main": real_database}, is_serial=True) as client:
        yield client


async def test_a_lifespan_with_a_task_group_runs_in_a_task_of_its_own(
    client_with_task_group: httpx.AsyncClient,
) -> None:
    assert (await client_with_task_group.get("/healthz")).status_code == 200
