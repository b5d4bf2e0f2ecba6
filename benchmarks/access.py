"""access: the CPU time that authentication and a rule add to a request that does nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, HTTPException
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from benchmarks.comparison import Comparison, Contender, Goal, Measured, Role, check_equal
from howdah import Database
from howdah.fastapi import allow, configure_app

_WITHOUT: Final = "no authentication"
_WITH: Final = "howdah authenticate and allow"
_ROLE: Final = "customer"


@dataclass(frozen=True)
class _User:
    key: str
    role: str
    scopes: frozenset[str] | None = None


_USER: Final = _User("user:1", _ROLE)


async def _authenticate(connection: HTTPConnection) -> _User | None:
    return _USER if "authorization" in connection.headers else None


class _Backend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        user = await _authenticate(conn)
        return None if user is None else (AuthCredentials([user.role]), SimpleUser(user.key))


async def _require_user(connection: HTTPConnection) -> _User:
    user = await _authenticate(connection)
    if user is None:
        raise HTTPException(HTTPStatus.UNAUTHORIZED)
    return user


async def _require_customer(user: Annotated[_User, Depends(_require_user)]) -> None:
    if user.role != _ROLE:
        raise HTTPException(HTTPStatus.FORBIDDEN)


class Access(Comparison):
    name = "access"
    description = "call an application {size} times, in its own process, with a route that does nothing"
    unit = "requests"
    size = 1_000
    quick_size = 300

    async def set_up(self) -> None:
        self._apps = {
            _WITHOUT: self._create_app(),
            _WITH: self._create_app(authenticate=_authenticate, dependencies=[allow(_ROLE)]),
            "two dependencies of FastAPI": self._create_app(dependencies=[Depends(_require_customer)]),
            "Starlette's AuthenticationMiddleware": self._create_app(
                prepare=lambda app: app.add_middleware(AuthenticationMiddleware, backend=_Backend()),
                endpoint=requires(_ROLE)(_answer),
            ),
        }

    def _create_app(
        self,
        *,
        authenticate: Any = None,
        dependencies: Any = None,
        prepare: Callable[[FastAPI], Any] = lambda app: None,
        endpoint: Any = None,
    ) -> FastAPI:
        """An application with one route. It has no metrics and no request log, which would take longer than a rule."""
        app = FastAPI()
        prepare(app)
        configure_app(
            app,
            database=lambda: Database(self.connections.database.engine.url),
            authenticate=authenticate,
            metrics=False,
            request_log=False,
        )
        app.add_api_route("/", endpoint or _answer, dependencies=dependencies)
        return app

    def contenders(self) -> list[Contender]:
        roles: tuple[Role, ...] = ("baseline", "howdah", "reference", "peer")
        return [
            Contender(name, role, self._make_run(app), self.count)
            for (name, app), role in zip(self._apps.items(), roles, strict=True)
        ]

    def goals(self) -> list[Goal]:
        return [Goal(_WITH, "of the time", 1.15, _WITHOUT)]

    def rounds(self) -> int:
        return 10 * self.requested_rounds  # the differences are only a few percent

    def _make_run(self, app: FastAPI) -> Callable[[], Any]:
        async def run() -> Measured:
            count = 0

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                nonlocal count
                count += message.get("status") == HTTPStatus.OK

            started = time.process_time()  # so that other processes change the figures less
            for _ in range(self.count):
                await app(_make_scope(), receive, send)
            seconds = time.process_time() - started
            check_equal("responses with 200", count, self.count)
            return Measured(seconds)

        return run

    async def reset(self, contender: Contender) -> None:
        """Nothing is written, so there is nothing to restore."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        """The run itself has counted its responses."""


async def _answer(request: Request) -> Response:
    return Response()


def _make_scope() -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"authorization", b"Bearer token")],
        "state": {},
    }
