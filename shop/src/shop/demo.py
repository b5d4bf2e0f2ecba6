"""Made-up data, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, bulk, run_transaction, uuid7
from shop.ledger.accounts import get_or_open_system_account
from shop.ledger.http.account_schemas import AccountIn
from shop.ledger.models import AccountPurpose
from shop.ledger.opening import OpeningRequest, open_accounts
from shop.ledger.requests import TransferRequest
from shop.ledger.service import post_transfers
from shop.orders.models import Order, OrderItem, OrderStatus
from shop.users.models import User

_FIRST: Final = ("Ada", "Alan", "Barbara", "Claude", "Donald", "Edsger", "Frances", "Grace", "Hedy", "Ken", "Radia")
_LAST: Final = ("Allen", "Dijkstra", "Hopper", "Knuth", "Lamarr", "Liskov", "Lovelace", "Perlman", "Shannon", "Turing")
_COUNTRIES: Final = ("France", "Germany", "Netherlands", "United Kingdom")
_GOODS: Final = (("TEAPOT", "Brown teapot", 1295), ("LANTERN", "Storm lantern", 2150), ("CANDLE", "Candle", 85))
_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_ORDERS_EACH: Final = 10
_BATCH: Final = 500


async def create_demo(
    database: Database, *, users: int, seed: int, advance: Callable[[int], None] = lambda _done: None
) -> int:
    """Make this many users, each with ten orders and an account with money on it; how many were new.

    The users of a seed that exist already are left as they are, with all that is theirs. `advance` is told of every
    500 done. Each 500 are one transaction.
    """
    created = 0
    for first in range(0, users, _BATCH):
        numbers = range(first, min(first + _BATCH, users))

        async def make(session: AsyncSession, numbers: range = numbers) -> int:
            return await _make(session, seed, numbers)

        created += await run_transaction(database, make)
        advance(len(numbers))
    return created


async def _make(session: AsyncSession, seed: int, numbers: range) -> int:
    people = {f"demo-{seed}-{number}@shop.example": Random(f"{seed}-{number}") for number in numbers}  # noqa: S311
    known = set(await session.scalars(select(User.email).where(User.email.in_(people))))
    new = {email: dice for email, dice in people.items() if email not in known}
    ids = (await bulk.insert_many(session, User, (_user(email, dice) for email, dice in new.items()))).keys
    orders = [order for user_id, dice in zip(ids, new.values(), strict=True) for order in _orders(user_id, dice)]
    await bulk.insert_many(session, Order, (order for order, _ in orders), keys=False)
    await bulk.insert_many(session, OrderItem, (item for _, items in orders for item in items), keys=False)
    if new:
        bank = await get_or_open_system_account(session, AccountPurpose.CASH_IN, "GBP")
        opened = await open_accounts(
            session,
            [OpeningRequest(AccountIn(name="Current account", currency="GBP", user_id=user_id)) for user_id in ids],
        )
        accounts = [each.unwrap() for each in opened]
        await post_transfers(
            session,
            [
                TransferRequest(bank.id, account.id, dice.randrange(1_000, 1_000_000), description="first deposit")
                for account, dice in zip(accounts, new.values(), strict=True)
            ],
        )
    return len(new)


def _user(email: str, dice: Random) -> dict[str, Any]:
    name = f"{dice.choice(_FIRST)} {dice.choice(_LAST)}"
    return {"email": email, "name": name, "country": dice.choice(_COUNTRIES)}


def _orders(user_id: UUID, dice: Random) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    for _ in range(_ORDERS_EACH):
        order_id = uuid7()
        goods = [(*dice.choice(_GOODS), dice.randint(1, 12)) for _ in range(dice.randint(1, 4))]
        items = [
            {
                "order_id": order_id,
                "line_no": line_no,
                "sku": sku,
                "description": description,
                "quantity": quantity,
                "unit_price_cents": price,
            }
            for line_no, (sku, description, price, quantity) in enumerate(goods, start=1)
        ]
        order = {
            "id": order_id,
            "user_id": user_id,
            "status": dice.choice(list(OrderStatus)),
            "total_cents": sum(price * quantity for _, _, price, quantity in goods),
            "placed_at": _START + timedelta(minutes=dice.randrange(300 * 24 * 60)),
        }
        yield order, items
