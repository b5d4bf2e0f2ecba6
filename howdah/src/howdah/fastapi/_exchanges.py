"""One request to an idempotent route: its body, its claim of a key, and its answer."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request, Response
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.types import Message, Receive, Scope

from howdah.errors import DatabaseError
from howdah.fastapi._bodies import mark_as_received, receive_parts, store_parts
from howdah.fastapi._spool import Spool
from howdah.fastapi.stream_limits import BodyLimits
from howdah.idempotency import IdempotentRequest, StoredAnswer, store_answer

_IN_FAILED_TRANSACTION: Final = "25P02"

# A response with one of these statuses, or a 5xx, asks the client to send the request again. So it isn't stored.
_RETRY_STATUSES: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})

NO_BACKGROUND_TASKS: Final = (
    "an idempotent route can't have background tasks, because they are lost if the process ends after the commit, and "
    "a retry would not run them again: add a job to a queue in the route's transaction"
)


class Claim:
    """A claimed key. Until the answer is stored, the session can't be committed."""

    def __init__(
        self, session: AsyncSession, model: type[IdempotentRequest], *, scope: str, key: str, max_answer_bytes: int
    ) -> None:
        self._session = session
        self._model = model
        self._scope = scope
        self._key = key
        self._max_answer_bytes = max_answer_bytes

    def forbid_commit(self) -> None:
        event.listen(self._session.sync_session, "before_commit", _reject_commit)

    async def store(self, response: Response, fingerprint: bytes) -> None:
        """Add the answer to the transaction, which `DbSession` commits. Roll back if the status asks for a retry."""
        self._allow_commit()
        if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status_code in _RETRY_STATUSES:
            await self._session.rollback()
            return
        body = self._read_body(response)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers]
        answer = StoredAnswer(fingerprint, response.status_code, headers, body)
        try:
            await store_answer(self._session, self._model, answer, scope=self._scope, key=self._key)
        except DatabaseError as error:
            if error.sqlstate == _IN_FAILED_TRANSACTION:
                # The route has caught the error that aborted its transaction. A commit raises that error again.
                await self._session.commit()
            raise

    async def roll_back(self) -> None:
        """Undo the claim. `DbSession` would commit it if another route class turned the error into a response."""
        self._allow_commit()
        await self._session.rollback()

    def _allow_commit(self) -> None:
        if event.contains(self._session.sync_session, "before_commit", _reject_commit):
            event.remove(self._session.sync_session, "before_commit", _reject_commit)

    def _read_body(self, response: Response) -> bytes:
        """The bytes of the response. Raises for a response that can't be replayed."""
        body = getattr(response, "body", None)
        if not isinstance(body, bytes | memoryview):
            raise TypeError(
                f"a {type(response).__name__} can't be stored for an idempotency key, because it has no body before it "
                "is sent: return a Response with its content"
            )
        if response.background is not None:
            raise TypeError(NO_BACKGROUND_TASKS)
        if len(body) > self._max_answer_bytes:
            raise ValueError(
                f"the response has {len(body)} bytes, and only {self._max_answer_bytes} are stored for an idempotency "
                "key: return less, such as the id of what was created, or raise max_answer_bytes"
            )
        return bytes(body)


class Exchange:
    """One request to an `IdempotentRoute`: the digest of its parts that were read so far, and the claim of its key."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._receive: Receive = request.receive
        self._received_count = 0
        self._digest = _start_digest(request.scope)
        self._is_complete = False
        self._claim: Claim | None = None
        self._stored: Spool | None = None

    async def receive(self) -> Message:
        """The next message of the client. The body is hashed as the route reads it, so it may have any length."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._received_count += 1
            self._digest.update(message.get("body", b""))
            self._is_complete = not message.get("more_body", False)
        return message

    async def receive_body(self, limits: BodyLimits) -> None:
        """Receive the rest of the body, and store it for the route."""
        if self._is_complete:
            return
        self._stored = await store_parts(self._read_rest(limits))
        Request.__init__(self._request, self._request.scope, self._receive_stored)
        mark_as_received(self._request)

    async def _receive_stored(self) -> Message:
        part = b"" if self._stored is None else await self._stored.read()
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    def close(self) -> None:
        if self._stored is not None:
            self._stored.close()

    async def _read_rest(self, limits: BodyLimits) -> AsyncIterator[bytes]:
        """The part of the body that the route hasn't read."""
        received_count = self._received_count
        async for chunk in receive_parts(self._request, limits, max_bytes=limits.max_bytes):
            if self._received_count == received_count:  # another route class had read the body
                self._digest.update(chunk)
            received_count = self._received_count
            yield chunk
        self._is_complete = True

    def fingerprint(self) -> bytes:
        """The digest of the whole request."""
        assert self._is_complete  # the body was received before the key was claimed
        digest: bytes = self._digest.digest()
        return digest

    def hold(self, claim: Claim) -> None:
        self._claim = claim
        claim.forbid_commit()

    async def store(self, response: Response) -> Response:
        if self._claim is not None:
            await self._claim.store(response, self.fingerprint())
        return response

    async def roll_back(self) -> None:
        if self._claim is not None:
            await self._claim.roll_back()


def _start_digest(scope: Scope) -> Any:
    """A SHA-256 of the method, path, query and `Content-Type`, each with its length. The body follows."""
    digest = hashlib.sha256()
    content_types = [value for name, value in scope["headers"] if name == b"content-type"]
    path = scope["path"].encode("utf-8", "surrogatepass")
    for part in (scope["method"].encode(), path, scope.get("query_string", b""), b", ".join(content_types)):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest


def _reject_commit(session: Session) -> None:
    """Reject a commit by the route. The end of a savepoint is allowed."""
    if not session.in_nested_transaction():
        raise RuntimeError(
            "an idempotent route must not commit its session: its effects would be stored without its response. "
            "DbSession commits after the route has returned; use a savepoint for a part that may fail"
        )
