"""Validate each request before it is decided: exact types, and values that the database can store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from shop.ledger.requests import MAX_PENDING_SECONDS, TransferRequest, split_into_chains
from shop.limits import EARLIEST, LATEST, MAX_DESCRIPTION, MAX_METADATA, MAX_METADATA_NAME, MAX_METADATA_VALUE

# The lengths of the columns in `shop.ledger.models`.
_MAX_KEY: Final = 260
_MAX_SCOPE: Final = 100


def validate_requests(requests: Iterable[TransferRequest]) -> tuple[TransferRequest, ...]:
    """Validate the requests and their chains, and return them as a tuple, which the caller can't change later.

    Raises `TypeError` and `ValueError`, as `check_request` and `split_into_chains` do.
    """
    validated = tuple(requests)
    for request in validated:
        check_request(request)
    for _ in split_into_chains(validated):
        pass
    return validated


def check_request(request: TransferRequest) -> None:
    """Raise `TypeError` if a field has the wrong type, and `ValueError` if a value can't be stored.

    The types must match exactly. A `bool` or a `Decimal` as the amount, for example, would be compared like an `int`
    but stored as another number. An amount that is out of range, an unknown account or a wrong currency is not an error
    here. Such a request is refused later.
    """
    if not isinstance(request, TransferRequest):
        raise TypeError(f"a TransferRequest is expected, not {type(request).__name__}; pass several requests as a list")
    if not (isinstance(request.from_account_id, UUID) and isinstance(request.to_account_id, UUID)):
        name = "to_account_id" if isinstance(request.from_account_id, UUID) else "from_account_id"
        raise _wrong_type(name, getattr(request, name), _A_UUID)
    if type(request.amount) is not int:
        _check_no_amount(request)
    if request.key is not None:
        _check_text("key", request.key, _MAX_KEY)
    if request.scope != "":
        _check_text("scope", request.scope, _MAX_SCOPE)
    if request.description is not None:
        _check_text("description", request.description, MAX_DESCRIPTION)
    if request.currency is not None:
        _check_currency(request.currency)
    if request.metadata is not None:
        _check_metadata(request.metadata)
    if request.effective_at is not None:
        _check_time(request.effective_at)
    if request.posted_by is not None and not isinstance(request.posted_by, UUID):
        raise _wrong_type("posted_by", request.posted_by, _A_UUID)
    if type(request.linked) is not bool:
        raise _wrong_type("linked", request.linked, "pass True or False")
    if not request.is_basic:
        _check_kind(request)


_A_UUID: Final = "pass a uuid.UUID: UUID(text) makes one of a str"
_AN_INT: Final = "pass an int, in the currency's smallest unit"


def _check_no_amount(request: TransferRequest) -> None:
    """Raise `TypeError` unless the amount is None and the request may leave it out."""
    if request.amount is not None:
        raise _wrong_type("amount", request.amount, _AN_INT)
    if request.posts is None and request.voids is None and request.reverses is None:
        raise _wrong_type("amount", None, f"{_AN_INT}; only a request that posts, voids or reverses may leave it out")


def _check_kind(request: TransferRequest) -> None:
    """Check a request that holds, posts, voids or reverses."""
    for name in ("posts", "voids", "reverses"):
        value = getattr(request, name)
        if value is not None and not isinstance(value, UUID):
            raise _wrong_type(name, value, _A_UUID)
    kinds = (request.pending_seconds, request.posts, request.voids, request.reverses)
    if sum(kind is not None for kind in kinds) > 1:
        raise ValueError("pending_seconds, posts, voids and reverses can't be combined: pass only one of them")
    seconds = request.pending_seconds
    if seconds is not None:
        if type(seconds) is not int:
            raise _wrong_type("pending_seconds", seconds, "pass an int")
        if not 1 <= seconds <= MAX_PENDING_SECONDS:
            raise ValueError(f"pending_seconds: {seconds} is out of range; pass 1 to {MAX_PENDING_SECONDS}")
    if request.posts is not None or request.voids is not None:
        for name in ("description", "metadata", "effective_at"):
            if getattr(request, name) is not None:
                raise ValueError(
                    f"{name}: a request that posts or voids keeps the {name} of the pending transfer; don't pass {name}"
                )
    if request.voids is not None and request.amount is not None:
        raise ValueError(
            "amount: a pending transfer can only be voided as a whole; don't pass amount, or post a part instead"
        )


def _check_text(name: str, value: str, max_length: int) -> None:
    if type(value) is not str:
        raise _wrong_type(name, value, "pass a str")
    if len(value) > max_length:
        raise ValueError(f"{name}: {len(value)} characters are too many; pass at most {max_length}")
    if "\0" in value:
        raise ValueError(f"{name}: PostgreSQL can't store a NUL character; remove it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}: a surrogate character can't be stored; decode the text as UTF-8") from None


def _check_currency(currency: str) -> None:
    _check_text("currency", currency, 3)
    if len(currency) != 3 or not (currency.isascii() and currency.isalpha() and currency.isupper()):
        raise ValueError(f"currency: {currency!r} isn't a currency code; pass three capital letters, such as 'GBP'")


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if not isinstance(metadata, Mapping):
        raise _wrong_type("metadata", metadata, "pass a dict of str to str")
    if len(metadata) > MAX_METADATA:
        raise ValueError(f"metadata: {len(metadata)} names are too many; pass at most {MAX_METADATA}")
    for name, value in metadata.items():
        _check_text("metadata, a name", name, MAX_METADATA_NAME)
        if not name:
            raise ValueError("metadata: a name is empty; give it at least one character")
        _check_text(f"metadata[{name!r}]", value, MAX_METADATA_VALUE)


def _check_time(moment: datetime) -> None:
    if type(moment) is not datetime:  # a subclass may be more precise than the column, as pandas.Timestamp is
        raise _wrong_type("effective_at", moment, "pass a datetime.datetime with a time zone")
    if moment.utcoffset() is None:
        raise ValueError(
            "effective_at: a naive datetime has no time zone; pass an aware one, such as datetime.now(UTC)"
        )
    if not EARLIEST <= moment <= LATEST:
        raise ValueError(f"effective_at: {moment} is out of range; pass a time between {EARLIEST} and {LATEST}")


def _wrong_type(name: str, value: Any, instead: str) -> TypeError:
    return TypeError(f"{name} is {_describe_type(value)}; {instead}")


def _describe_type(value: Any) -> str:
    type_ = type(value)
    return "None" if value is None else f"of type {type_.__module__}.{type_.__qualname__}".replace("builtins.", "")
