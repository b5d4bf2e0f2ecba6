"""The lines of the response to an NDJSON batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, TypeVar

from shop.ledger.transfer_schemas import encode_json

ResultT = TypeVar("ResultT")


def write_result_lines(
    requests: Mapping[int, object],
    results: Iterable[ResultT],
    output: IO[bytes],
    *,
    empty_result: Mapping[str, Any],
    serialize: Callable[[ResultT], Mapping[str, Any]],
) -> None:
    """Write a line for each line of the request. `requests` has them by line number.

    If a line is invalid, its request is the reason, a string, and it has no element in `results`. `empty_result` has
    the fields of a line in their order. `serialize` returns the fields of a result that differ from it.
    """
    remaining = iter(results)
    for number, request in requests.items():
        if isinstance(request, str):
            content: Mapping[str, Any] = {"outcome": "invalid", "detail": request}
        else:
            content = serialize(next(remaining))
        output.write(encode_json({"line": number, **empty_result, **content}) + b"\n")
