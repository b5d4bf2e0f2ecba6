"""The messages between the parent process and a worker, over a Unix socket pair."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from enum import IntEnum, auto
from typing import Final, NamedTuple

_HEAD: Final = struct.Struct(">BIQ")


class MessageKind(IntEnum):
    """What a message says, and its payload."""

    # from a worker
    READY = auto()  # it serves connections
    METRICS = auto()  # its metrics; the number is that of `SEND_METRICS`, or 0
    NO_METRICS = auto()  # its metrics can't be read; the number is that of `SEND_METRICS`, or 0
    COLLECT = auto()  # asks for the metrics of all workers
    # from the parent
    DRAIN = auto()  # /readyz fails, and each response has `Connection: close`
    STOP = auto()  # no more connections come: a `StopOrder` as JSON
    FORCE = auto()  # cancel the requests
    SEND_METRICS = auto()  # asks for its metrics
    SUMS = auto()  # the answer to `COLLECT`: a JSON array with the metrics of each worker


class Message(NamedTuple):
    kind: MessageKind
    number: int
    payload: bytes


def encode_message(kind: MessageKind, number: int = 0, payload: bytes = b"") -> bytes:
    return _HEAD.pack(kind, number, len(payload)) + payload


async def read_messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    """The messages until the other process has ended, or has closed its socket."""
    try:
        while True:
            kind, number, length = _HEAD.unpack(await reader.readexactly(_HEAD.size))
            yield Message(MessageKind(kind), number, await reader.readexactly(length))
    except (EOFError, ConnectionError):  # a reset, if the process ended without reading all messages
        return
