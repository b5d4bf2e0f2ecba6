"""The check of a request's types and values, at every entry point of the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from asyncpg.pgproto import pgproto
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, InvalidValue
from shop.ledger.account_schemas import AccountChange, AccountIn
from shop.ledger.group_commit import Ledger
from shop.ledger.models import IdempotencyKey
from shop.ledger.requests import MAX_AMOUNT, Refusal, TransferRequest
from shop.ledger.service import as_linked_chain, post_transfers, transfer_funds
from shop.limits import EARLIEST, LATEST
from shop.orders.models import Order
from shop.orders.schemas import OrderIn
from shop.orders.service import pay_order, place_order
from shop.users.models import User
from shop_tests.support.funded_accounts import assert_ledger_is_correct, open_accounts


class Coins(IntEnum):
    ONE = 1


class Number(int):
    pass


class Text(str):
    __slots__ = ()


class Moment(datetime):
    pass


class NoOffset(tzinfo):
    """A time zone that doesn't say how far it is from UTC."""

    def utcoffset(self, moment: datetime | None) -> None:
        return None

    def dst(self, moment: datetime | None) -> None:
        return None

    def tzname(self, moment: datetime | None) -> str:
        return "nowhere"


TYPES: Final[dict[str, tuple[type, ...]]] = {
    "from_account_id": (UUID,),
    "to_account_id": (UUID,),
    "amount": (int,),
    "currency": (str, type(None)),
    "description": (str, type(None)),
    "reverses": (UUID, type(None)),
    "key": (str, type(None)),
    "scope": (str,),
    "metadata": (dict, type(None)),
    "effective_at": (datetime, type(None)),
    "pending_seconds": (int, type(None)),
    "posts": (UUID, type(None)),
    "voids": (UUID, type(None)),
    "linked": (bool,),
    "posted_by": (UUID, type(None)),
}
"""The types that a field has."""

ANY: Final = st.one_of(
    st.sampled_from([True, False, None, Coins.ONE, Number(1), Text("GBP"), 1j, Refusal.KEY_REUSED, object(), UUID]),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.fractions(),
    st.text(),
    st.binary(),
    st.dates(),
    st.datetimes(timezones=st.just(UTC)),
    st.builds(Moment.now, st.just(UTC)),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.uuids().map(str),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)

WRONG_VALUES: Final[list[tuple[str, Any]]] = [
    *[("currency", value) for value in ("", "gbp", "GB", "GBPS", "ÄÖÜ", "G P", "GB\0", "\ud800")],
    *[("key", value) for value in ("k\0", "\ud800", "k" * 261)],
    *[("scope", value) for value in ("s\0", "\ud800", "s" * 101)],
    *[("description", value) for value in ("\0", "é\udfff", "d" * 501)],
    *[("metadata", value) for value in ({"": "1"}, {"a": 1}, {1: "a"}, {"a": None}, {"a": Text("b")}, {"n" * 41: "1"})],
    *[("metadata", value) for value in ({"a": "\0"}, {"\0": "a"}, {"a": "\ud800"}, {"a": "v" * 501})],
    *[("metadata", value) for value in ({f"{n}": "" for n in range(51)}, [("a", "b")])],
    ("effective_at", datetime(2024, 1, 1)),  # noqa: DTZ001  # a naive time is the wrong value
    ("effective_at", datetime(2024, 1, 1, tzinfo=NoOffset())),
    ("effective_at", datetime.min.replace(tzinfo=UTC)),
    ("effective_at", datetime.max.replace(tzinfo=UTC)),
    ("effective_at", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))),
    ("effective_at", datetime(9999, 12, 31, tzinfo=timezone(timedelta(hours=-14)))),
    *[("pending_seconds", value) for value in (0, -1, 30 * 86_400 + 1)],
]
"""Values that have the right type but can't be stored."""

WRONG: Final = st.sampled_from(sorted(TYPES)).flatmap(
    lambda name: st.tuples(st.just(name), ANY.filter(lambda value: type(value) not in TYPES[name]))
) | st.sampled_from(WRONG_VALUES)

Entry = Callable[[Ledger, AsyncSession, TransferRequest, UUID], Awaitable[Any]]


async def submit(ledger: Ledger, _: AsyncSession, request: TransferRequest, __: UUID) -> None:
    await ledger.submit(request)


async def submit_many(ledger: Ledger, _: AsyncSession, request: TransferRequest, __: UUID) -> None:
    await ledger.submit_many([valid_request(key="first"), request, valid_request(key="last")])


async def submit_linked(ledger: Ledger, _: AsyncSession, request: TransferRequest, __: UUID) -> None:
    await ledger.submit_many(as_linked_chain(request.key, [valid_request(), request]))  # type: ignore[arg-type]


async def post_in_session(_: Ledger, session: AsyncSession, request: TransferRequest, __: UUID) -> None:
    await post_transfers(session, [valid_request(key="first"), request])


async def post_by_ids(_: Ledger, session: AsyncSession, request: TransferRequest, __: UUID) -> None:
    await transfer_funds(session, request.from_account_id, request.to_account_id, request.amount)  # type: ignore[arg-type]


async def pay(_: Ledger, session: AsyncSession, request: TransferRequest, order_id: UUID) -> None:
    await pay_order(
        session, order_id, request.from_account_id, request.to_account_id, key=request.key, scope=request.scope
    )


def valid_request(**values: Any) -> TransferRequest:
    """A valid request of accounts that don't exist."""
    return TransferRequest(uuid4(), uuid4(), 1, **values)


ALL: Final = frozenset(TYPES)
ENTRIES: Final[dict[Entry, frozenset[str]]] = {
    submit: ALL,
    submit_many: ALL,
    submit_linked: ALL - {"linked"},
    post_in_session: ALL,
    post_by_ids: frozenset({"from_account_id", "to_account_id", "amount"}),
}
"""The fields that each entry point takes."""
PAYING: Final[dict[Entry, frozenset[str]]] = {pay: frozenset({"from_account_id", "to_account_id", "key", "scope"})}


async def stored_keys(database: Database) -> int:
    async with database.session() as session:
        return await session.scalar(select(func.count()).select_from(IdempotencyKey)) or 0


async def unpaid_order(session: AsyncSession) -> Order:
    user = User(id=uuid4(), email="ada@example.com", name="Ada")
    session.add(user)
    await session.flush()
    items = [{"sku": "TEA", "quantity": 1, "unit_price_cents": 5}]
    return await place_order(session, OrderIn.model_validate({"items": items}), user.id)


def test_every_field_of_a_request_has_its_types_in_this_file() -> None:
    """The other tests give each of these fields a wrong value."""
    assert tuple(TYPES) == TransferRequest._fields


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entry=st.sampled_from(list(ENTRIES)), wrong=WRONG)
async def test_every_entry_point_rejects_a_wrong_type_or_value_by_name(
    database: Database, entry: Entry, wrong: tuple[str, Any]
) -> None:
    """The check comes before the decision, which would be `unknown_account`: none of the accounts exists."""
    name, value = wrong
    assume(name in ENTRIES[entry])
    assume((entry, name, value) != (submit_linked, "key", None))
    request = TransferRequest(uuid4(), uuid4(), 1, key="k", scope="s")._replace(**{name: value})
    async with Ledger(database) as ledger, database.session() as session:
        with pytest.raises((TypeError, ValueError), match=name) as refused:
            await entry(ledger, session, request, uuid4())
        assert "pass " in str(refused.value) or type(refused.value) is ValueError
        assert not session.in_transaction()
        assert ledger.status().items == 0


async def test_rejected_requests_change_nothing(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with stored.begin() as session:
        unpaid = (await unpaid_order(session)).id
    wrong: list[tuple[str, Any]] = [
        ("amount", value) for value in (1.5, True, Decimal("1.99"), Fraction(3, 2), Coins.ONE, Number(1), "1", None)
    ]
    wrong += [("effective_at", date(2024, 1, 1)), ("effective_at", time()), ("from_account_id", str(a)), *WRONG_VALUES]
    async with Ledger(stored) as ledger:
        (await ledger.submit(TransferRequest(a, b, 10))).unwrap()
        for name, value in wrong:
            for entry in [entry for entry, names in (ENTRIES | PAYING).items() if name in names]:
                request = TransferRequest(a, b, 1, key="k", scope="s")._replace(**{name: value})
                async with stored.session() as session:
                    with pytest.raises((TypeError, ValueError), match=name):
                        await entry(ledger, session, request, unpaid)
        for _ in range(60):
            with pytest.raises(TypeError, match="amount is of type float; pass an int"):
                await ledger.submit(TransferRequest(a, b, 1.5))  # type: ignore[arg-type]
        assert await stored_keys(stored) == 0
        (await ledger.submit(TransferRequest(a, b, 90))).unwrap()  # the whole balance
    await assert_ledger_is_correct(stored)


async def test_the_library_rejects_an_amount_that_was_not_checked(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with Ledger(stored) as ledger:
        for _ in range(3):
            with pytest.raises(InvalidValue, match="float"):
                await ledger._submit((TransferRequest(a, b, 1.5),))  # type: ignore[arg-type]
        await ledger.submit(TransferRequest(a, b, 1))
    await assert_ledger_is_correct(stored)


async def test_the_largest_values_are_stored_and_replayed(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    text = "\U0001f600"
    for number, moment in enumerate((EARLIEST, LATEST, datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=14))))):
        request = TransferRequest(
            pgproto.UUID(str(a)),
            b,
            1,
            currency="GBP",
            description=text * 500,
            key=f"{number}" + text * 259,
            scope=text * 100,
            metadata={f"{n:02}" + text * 38: text * 500 for n in range(50)},
            effective_at=moment,
        )
        async with Ledger(stored) as ledger:
            first, second = await ledger.submit(request), await ledger.submit(request)
            assert (first.unwrap(), second.replayed) == (second.unwrap(), True)
            assert first.unwrap().effective_at == moment


async def test_another_mapping_type_is_the_same_metadata(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    metadata: Mapping[str, str] = {"b": "1", "a": "2"}
    request = TransferRequest(a, b, 1, key="k", metadata=metadata)
    async with Ledger(stored) as ledger:
        (await ledger.submit(request)).unwrap()
        again = await ledger.submit(request._replace(metadata=MappingProxyType(dict(sorted(metadata.items())))))
    assert (again.refusal, again.replayed) == (None, True)


HUGE: Final = 1 << 20_000  # has more digits than Python converts to text


@pytest.mark.parametrize(
    "amount",
    [0, -1, MAX_AMOUNT + 1, 2**63, -(2**63), 10**30, HUGE, -HUGE],
    ids=lambda amount: f"{amount.bit_length()} bits, {amount > 0}",
)
async def test_an_amount_out_of_range_is_a_stored_refusal(stored: Database, amount: int) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with Ledger(stored) as ledger:
        answers = [await ledger.submit(TransferRequest(a, b, amount, key="k")) for _ in range(2)]
        assert [answer.refusal for answer in answers] == [Refusal.AMOUNT_OUT_OF_RANGE] * 2
        assert [answer.replayed for answer in answers] == [False, True]
    await assert_ledger_is_correct(stored)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"posts": uuid4(), "description": "d"}, "description"),
        ({"posts": uuid4(), "metadata": {"a": "b"}}, "metadata"),
        ({"voids": uuid4(), "effective_at": EARLIEST}, "effective_at"),
        ({"voids": uuid4(), "amount": 1}, "amount"),
        ({"posts": uuid4(), "voids": uuid4()}, "only one of"),
        ({"reverses": uuid4(), "pending_seconds": 1}, "only one of"),
        ({"amount": None}, "amount is None"),
        ({"amount": None, "pending_seconds": 1}, "amount is None"),
    ],
)
async def test_a_field_that_the_kind_of_request_would_ignore_is_rejected(
    database: Database, values: dict[str, Any], name: str
) -> None:
    amount = None if "posts" in values or "voids" in values else 1
    request = TransferRequest(uuid4(), uuid4(), amount)._replace(**values)
    async with Ledger(database) as ledger:
        with pytest.raises((TypeError, ValueError), match=name):
            await ledger.submit(request)


async def test_a_list_that_changes_while_it_waits_is_posted_unchanged(stored: Database) -> None:
    """Each caller gets the results of its own list."""
    a, b = await open_accounts(stored, 100, 0)
    requests = [TransferRequest(a, b, 1)]
    async with Ledger(stored) as ledger:
        first, second = ledger.submit_many(requests), ledger.submit_many([TransferRequest(a, b, 2)])
        waiting = asyncio.gather(first, second)
        await asyncio.sleep(0)  # both are in the queue
        requests.append(TransferRequest(a, b, 3))
        answers = await waiting
    assert [[each.unwrap().amount for each in answer] for answer in answers] == [[1], [2]]


async def test_a_request_instead_of_a_list_and_other_elements_are_rejected(database: Database) -> None:
    request = TransferRequest(uuid4(), uuid4(), 1)
    async with Ledger(database) as ledger, database.session() as session:
        for call in (
            lambda: ledger.submit_many(request),  # type: ignore[arg-type]
            lambda: ledger.submit_many([tuple(request)]),  # type: ignore[list-item]
            lambda: ledger.submit([request]),  # type: ignore[arg-type]
            lambda: post_transfers(session, request),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError, match="a TransferRequest is expected"):
                await call()
        assert await ledger.submit_many(iter(())) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["overdraft_limit", "balance_limit"])
@pytest.mark.parametrize("value", [True, 1.0, "1", Decimal(1), -1, 2**62 + 1])
def test_a_limit_of_an_account_is_a_non_negative_int(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        AccountIn.model_validate({"name": "Account", "currency": "GBP", name: value})
    with pytest.raises(ValidationError, match=name):
        AccountChange.model_validate({name: value})
