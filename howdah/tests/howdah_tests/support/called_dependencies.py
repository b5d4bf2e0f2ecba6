"""Record the calls of a route's dependencies during a request, by FastAPI or by a direct route."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias

from fastapi import FastAPI

from howdah.fastapi import AccessRule
from howdah.fastapi._routes import iterate_all_routes, iterate_dependants

Call: TypeAlias = tuple[CodeType, int | None]
"""The code of a function, and the id of the object if it is a method or a callable object."""

_RULE: Final = AccessRule.check.__code__


def identify(call: Callable[..., Any]) -> Call:
    """The call that the interpreter makes for a dependency. For the rule of a route it is `AccessRule.check`."""
    while isinstance(call, functools.partial):
        call = call.func
    if isinstance(call, AccessRule):
        return _RULE, id(call)
    if inspect.ismethod(call):
        return call.__func__.__code__, id(call.__self__)
    if inspect.isfunction(call):
        return call.__code__, None
    return type(call).__call__.__code__, id(call)


def list_dependencies(app: FastAPI, method: str, path: str) -> list[Callable[..., Any]]:
    """The dependencies that FastAPI has for this route, with those that its inclusions have added."""
    for route in iterate_all_routes(app.routes):
        if route.path == path and method in (route.methods or ()):
            return [each.call for each in iterate_dependants(route.dependant) if each.call is not None]
    raise LookupError(f"no route {method} {path}")


@contextmanager
def recorded_calls(wanted: Iterable[Callable[..., Any]]) -> Iterator[list[Call]]:
    """The calls of these functions by this thread, in their order."""
    keys = {identify(each) for each in wanted}
    codes = {code for code, _ in keys}
    frames: list[FrameType] = []  # of coroutines and generators, which continue in the same frame
    calls: list[Call] = []

    def record(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_code not in codes or any(frame is each for each in frames):
            return
        frames.append(frame)
        names = frame.f_code.co_varnames
        owner = id(frame.f_locals["self"]) if names and names[0] == "self" else None
        if (frame.f_code, owner) in keys:
            calls.append((frame.f_code, owner))

    sys.setprofile(record)
    try:
        yield calls
    finally:
        sys.setprofile(None)
