"""Idempotent requests: a route runs once for each `Idempotency-Key`, and a retry gets the stored response.

order_key = idempotency_key(IdempotentRequest, scope=get_caller)
router = APIRouter(route_class=IdempotentRoute)

@router.post("/orders", dependencies=[order_key])
async def create_order(body: OrderIn, db: DbSession) -> OrderOut: ...
"""

# No `from __future__ import annotations`: FastAPI can't resolve the name of a local type in a string.

import inspect
import re
from collections.abc import Callable, Coroutine, Iterator
from http import HTTPStatus
from typing import Annotated, Any, Final
from weakref import WeakKeyDictionary

from fastapi import Depends, Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.params import Depends as DependsMarker
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import WithJsonSchema
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.errors import IdempotencyKeyReused
from howdah.fastapi._exchanges import NO_BACKGROUND_TASKS, Claim, Exchange
from howdah.fastapi._routes import COMPLETE_DEPENDANT, iterate_dependants
from howdah.fastapi.headers import single_header
from howdah.fastapi.problem import ProblemException
from howdah.fastapi.sessions import find_dependant, get_db, is_committing_session
from howdah.fastapi.stream_limits import BodyLimits
from howdah.idempotency import (
    MAX_KEY_CHARACTERS,
    MAX_SCOPE_CHARACTERS,
    IdempotentRequest,
    StoredAnswer,
    check_max_wait,
    claim_request,
)

REPLAYED_HEADER: Final = "Idempotency-Replayed"

_KEY: Final = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_CHARACTERS}}}")
# The pattern is only in the OpenAPI description. FastAPI would reject an invalid key with 422, and not with 400.
_KeyText = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{_KEY.pattern}$"})]

# The place of the `Exchange` in the ASGI scope.
_EXCHANGE: Final = "howdah.idempotency"

# The dependencies that `idempotency_key` made, and the dependency of the session that each of them uses.
_key_dependencies: WeakKeyDictionary[Callable[..., Any], Callable[..., Any]] = WeakKeyDictionary()


class InvalidIdempotencyKey(ProblemException):
    """The header `Idempotency-Key` is empty, too long, or has characters that aren't allowed (400)."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST,
            "idempotency-key-invalid",
            f"Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} visible ASCII characters, and no spaces",
        )


def idempotency_key(
    model: type[IdempotentRequest],
    *,
    scope: Callable[..., Any],
    required: bool = False,
    session: Any = None,
    max_wait_seconds: float = 5.0,
    max_answer_bytes: int = 1_048_576,
    limits: BodyLimits | None = None,
) -> Any:
    """A dependency that makes a route idempotent: `@router.post("/orders", dependencies=[idempotency_key(...)])`.

    The router needs `route_class=IdempotentRoute`, and the route needs `DbSession`. The first request with a key runs
    the route. Its response is stored in the session's transaction, and is sent after the commit. A later request with
    the key gets the stored status, headers and body, with `Idempotency-Replayed: true`.

    - `model` is the table of stored requests: a class with the mixin `howdah.IdempotentRequest`.
    - `scope` is a dependency that identifies the caller, for example by the id of the authenticated user. It returns a
      `str` of at most 255 characters. Callers with different scopes never get each other's responses.
    - Without the header, every request runs the route, retries included. With `required`, a request without it is
      rejected (`MissingHeader`, 400).
    - `session` is needed if the route's session isn't `DbSession`. It is the result of `session_dependency` or
      `session_from`. With `session_from` the row of the key is written with the settings of that database.
    - While the first request with a key is running, others wait for `max_wait_seconds` at most. Then they get 409
      (`IdempotencyKeyInUse`). Each waiting request holds a connection.
    - A body that the route reads itself, for example with `BodyRows`, is received before the key is claimed, so that
      the transaction doesn't wait for the client. `limits` apply to such a body.
    - A response of more than `max_answer_bytes` is an error of the application (500), and the route is rolled back.

    A request with the same key and another method, path, query, `Content-Type` or body gets 422
    (`IdempotencyKeyReused`). An empty, malformed or repeated key gets 400.

    Every response that the route returns is stored, also a 4xx. An exception stores nothing: it rolls the session back,
    and the key is free again. A 5xx, 408, 425 or 429 that the route returns asks for a retry, so it has the same
    effect: the session is rolled back.

    The dependency runs where it is declared. Dependencies before it, such as those of the router, run for each request.
    Those after it don't run for a replay. The dependency returns the key, or None.
    """
    committing = get_db if session is None else getattr(session, "dependency", None)
    if committing is None or not is_committing_session(committing):
        raise TypeError("session must be what session_dependency or session_from returned, or None for DbSession")
    check_max_wait(max_wait_seconds)
    description = (
        "The client chooses a new key for each request, such as a UUID, and sends the same key with each retry. "
        f"At most {MAX_KEY_CHARACTERS} visible ASCII characters"
    )
    example = "6b3f1a52-0c7e-4c8a-9d5f-1f0e6a7b8c9d"
    header = single_header("Idempotency-Key", _KeyText, required=required, description=description, examples=[example])

    async def get_idempotency_key(
        request: Request,
        caller: Annotated[Any, Depends(scope)],
        key: Annotated[str | None, header],
        db: Annotated[AsyncSession, Depends(committing, scope="function")],
    ) -> str | None:
        """Claim the key of the request, or end the request with the stored answer."""
        exchange = request.scope.get(_EXCHANGE)
        if not isinstance(exchange, Exchange):
            raise TypeError(
                f"{request.scope['path']} has an idempotency key, but doesn't store its response: "
                "use APIRouter(route_class=IdempotentRoute)"
            )
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise InvalidIdempotencyKey
        _check_scope(caller, scope)
        await exchange.receive_body(limits or BodyLimits())
        claim = Claim(db, model, scope=caller, key=key, max_answer_bytes=max_answer_bytes)
        stored = await claim_request(db, model, scope=caller, key=key, max_wait_seconds=max_wait_seconds)
        if stored is not None:
            if stored.fingerprint != exchange.fingerprint():
                raise IdempotencyKeyReused
            raise _Replay(stored)
        exchange.hold(claim)
        return key

    _key_dependencies[get_idempotency_key] = committing
    return DependsMarker(get_idempotency_key)


class IdempotentRoute(APIRoute):
    """A route that stores its response if it has an `idempotency_key`: `APIRouter(route_class=IdempotentRoute)`.

    Routes without an `idempotency_key` are not affected. It can be combined with other classes of routes:

        class StrictIdempotentRoute(IdempotentRoute, StrictJSONRoute): ...

    A route can't be idempotent if it has no `DbSession` or several of them, streams its response, or uses
    `BackgroundTasks`. Such a route raises `TypeError` when it is declared, or at its first request. It also raises
    `RuntimeError` if it commits the session itself.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, which stores the response or replaces it by a stored one."""
        handle = super().get_route_handler()
        _check_route(self.dependant, self)
        complete = getattr(self, COMPLETE_DEPENDANT, None)
        if complete is not None and not _has_key(complete):
            return handle
        known: tuple[Dependant, bool] | None = None

        def may_have_key(request: Request) -> bool:
            """Whether the route may have an idempotency key. A dependency in `dependency_overrides` may have one, too.

            `include_router` may have added dependencies, which aren't known before the first request.
            """
            nonlocal known
            dependant = find_dependant(request) or self.dependant
            if known is None or known[0] is not dependant:  # the route may be included several times
                _check_route(dependant, self)
                known = dependant, _has_key(dependant)
            return known[1] or bool(getattr(request.scope.get("app"), "dependency_overrides", None))

        async def handle_once(request: Request) -> Response:
            if not may_have_key(request):
                return await handle(request)
            exchange = Exchange(request)
            request.scope[_EXCHANGE] = exchange
            # Only `receive` is replaced. The object stays the same, because another class of routes may have read its
            # body already, or reads it again for its log.
            Request.__init__(request, request.scope, exchange.receive)
            try:
                return await exchange.store(await handle(request))
            except _Replay as replay:
                return replay.to_response()
            except Exception:
                await exchange.roll_back()
                raise
            finally:
                exchange.close()

        return handle_once


class _Replay(Exception):
    """Ends the request with the stored answer. The session is not rolled back, because the exception is caught."""

    def __init__(self, answer: StoredAnswer) -> None:
        super().__init__()
        self.answer = answer

    def to_response(self) -> Response:
        response = Response(self.answer.body, self.answer.status)
        headers = [*self.answer.headers, (REPLAYED_HEADER.lower(), "true")]
        response.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        return response


def _has_key(dependant: Dependant) -> bool:
    return any(is_idempotency_key(each.call) for each in iterate_dependants(dependant))


def is_idempotency_key(dependency: Any) -> bool:
    """Whether the dependency is one that `idempotency_key` made."""
    # compared by identity, because a dependency may be unhashable
    return any(dependency is each for each in _key_dependencies)


def _check_scope(caller: Any, scope: Callable[..., Any]) -> None:
    """Raise if the scope can't tell the callers apart. All callers without an account would share None."""
    name = getattr(scope, "__name__", type(scope).__name__)
    if not isinstance(caller, str):
        raise TypeError(f"the scope of an idempotency key must be a str; {name} returned {type(caller).__name__}")
    if len(caller) > MAX_SCOPE_CHARACTERS:
        raise ValueError(
            f"the scope of an idempotency key has at most {MAX_SCOPE_CHARACTERS} characters; "
            f"{name} returned {len(caller)}"
        )


def _check_route(dependant: Dependant, route: APIRoute) -> None:
    """Raise `TypeError` if the route has an idempotency key, and its response can't be stored with its effects."""
    each_dependant = list(_iterate_other_dependants(dependant))
    keys = [each.call for each in each_dependant if is_idempotency_key(each.call)]
    if not keys:
        return
    path = route.path_format
    if len(keys) > 1:
        raise TypeError(f"{path} has {len(keys)} idempotency keys: declare one, for the router or for the route")
    sessions = {id(each.call): each.call for each in each_dependant if is_committing_session(each.call)}
    if not sessions:
        raise TypeError(
            f"{path} has an idempotency key, but no DbSession: its response is stored in the transaction of its "
            "effects. Add a parameter of the type DbSession, and write only with that session"
        )
    assert keys[0] is not None
    if list(sessions.values()) != [_key_dependencies[keys[0]]]:
        raise TypeError(
            f"{path} has a session that isn't the one of its idempotency key: a route can commit its response with "
            "one session only. Pass the marker of that session to idempotency_key(session=...)"
        )
    if any(is_committing_session(each.call) and not each.use_cache for each in each_dependant):
        raise TypeError(
            f"{path} has a session with use_cache=False, which isn't that of its idempotency key: a route can commit "
            "its response with one session only. Remove use_cache=False"
        )
    if any(each.background_tasks_param_name for each in each_dependant):
        raise TypeError(f"{path}: {NO_BACKGROUND_TASKS}")
    is_generator = inspect.isasyncgenfunction(route.endpoint) or inspect.isgeneratorfunction(route.endpoint)
    declared = route.response_class
    response_class = declared.value if isinstance(declared, DefaultPlaceholder) else declared
    if is_generator or issubclass(response_class, StreamingResponse | FileResponse):
        raise TypeError(f"{path} streams its response, so the response can't be stored for an idempotency key")


def _iterate_other_dependants(dependant: Dependant) -> Iterator[Dependant]:
    """The dependencies of a route, without those of its idempotency key."""
    yield dependant
    if not is_idempotency_key(dependant.call):
        for each in dependant.dependencies:
            yield from _iterate_other_dependants(each)
