"""Receive a body in parts, within limits, and store it before the database is used."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from fastapi import Request
from sqlalchemy.pool import Pool

from howdah.database import Database
from howdah.fastapi._spool import Spool, SpoolFull
from howdah.fastapi.body_limits import BodyTimeout, BodyTooLarge, lift_body_limits
from howdah.fastapi.stream_limits import BodyLimits, ClientPace, TooManyStreams

# In the ASGI scope of a request whose whole body has been received.
_IS_RECEIVED: Final = "howdah.body_is_received"


async def receive_parts(request: Request, limits: BodyLimits, *, max_bytes: int) -> AsyncIterator[bytes]:
    """The parts of the body as they arrive. Raises `BodyTooLarge` and `BodyTimeout`.

    These limits replace those of `configure_app`.
    """
    lift_body_limits(request)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLarge(max_bytes)
    size, pace = 0, ClientPace(limits)
    async with aclosing(request.stream()) as stream:
        while True:
            try:
                part = await pace.wait(anext(stream, None))
            except TimeoutError as error:
                raise BodyTimeout from error
            if part is None:
                return
            size += len(part)
            if size > max_bytes:
                raise BodyTooLarge(max_bytes)
            pace.count(len(part))
            yield part


async def store_parts(parts: AsyncIterator[bytes]) -> Spool:
    """Receive and store the whole body. Raises `TooManyStreams` if there is no space for it."""
    spool = Spool()
    try:
        async for part in parts:
            await spool.write(part, waits=False)
    except BaseException as error:
        spool.close()
        if isinstance(error, SpoolFull):
            raise TooManyStreams("there is no space for the body, because of other uploads: try again later") from error
        raise
    spool.finish()
    return spool


async def read_stored(request: Request, limits: BodyLimits) -> AsyncGenerator[bytes, None]:
    """The parts of the body, after the whole body has arrived."""
    parts = receive_parts(request, limits, max_bytes=limits.max_bytes)
    if is_received(request):
        async for part in parts:
            yield part
        return
    spool = await store_parts(parts)
    try:
        while part := await spool.read():
            yield part
    finally:
        spool.close()


def is_received(request: Request) -> bool:
    return _IS_RECEIVED in request.scope


def mark_as_received(request: Request) -> None:
    request.scope[_IS_RECEIVED] = True


def find_pool(request: Request) -> Pool | None:
    """The pool of the application's main database."""
    database = getattr(request.state, "database", None)
    return database.engine.pool if isinstance(database, Database) else None
