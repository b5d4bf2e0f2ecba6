"""Errors that an endpoint raises by name, and the handlers of some of them."""

# No `from __future__ import annotations`: FastAPI can't resolve the name of a local type in a string.

from collections.abc import Callable
from typing import Final

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError

from howdah import Unavailable, errors
from howdah.fastapi import (
    NotAuthenticated,
    ProblemException,
    problem_response,
)
from howdah_tests.support.idempotent_app import Note


class ForeignError(Exception):
    """An error with a handler of the application."""


class SecondError(Exception):
    """Its handler raises another error that has a handler."""


class UnhandledError(Exception):
    """An error without a handler."""


def fail(name: str) -> None:
    """Raise the error with this name."""
    raise ERRORS[name]()


ERRORS: Final[dict[str, Callable[[], BaseException]]] = {
    "not-found": lambda: errors.NotFound(Note, [7]),
    "invalid-cursor": lambda: errors.InvalidCursor("the cursor is damaged"),
    "stale-row": lambda: errors.StaleRow("the row was changed"),
    "key-in-use": errors.IdempotencyKeyInUse,
    "key-reused": errors.IdempotencyKeyReused,
    "queue-full": lambda: errors.QueueFull("the queue is full"),
    "pool": lambda: errors.PoolExhausted("no connection"),
    "unavailable": lambda: Unavailable("later"),
    "unknown-attribute": lambda: errors.UnknownAttribute(Note, "a", ["b"]),
    "teapot": lambda: HTTPException(418, "short and stout", {"X-Teapot": "yes"}),
    "http-404": lambda: HTTPException(404),
    "http-304": lambda: HTTPException(304),
    "http-object": lambda: HTTPException(400, {"reason": "an object"}),
    "problem": lambda: ProblemException(409, "out-of-stock", "sold out", item=7),
    "not-authenticated": NotAuthenticated,
    "validation": lambda: RequestValidationError([{"type": "x", "loc": ("body", "a"), "msg": "no", "input": 1}]),
    "foreign": ForeignError,
    "second": SecondError,
    "unexpected": lambda: UnhandledError("secret"),
    "runtime": lambda: RuntimeError("secret"),
    "key": lambda: KeyError("secret"),
    "timeout": TimeoutError,
    "stop": lambda: StopAsyncIteration("stop"),
    "assertion": lambda: AssertionError("secret"),
    "group": lambda: ExceptionGroup("several", [UnhandledError("secret")]),
}


async def answer_foreign(request: Request, error: Exception) -> Response:
    return problem_response(422, "foreign", detail=f"{type(error).__name__} of {request.url.path}")


def raise_another(request: Request, error: Exception) -> Response:
    raise HTTPException(410, "the handler has raised another error")
