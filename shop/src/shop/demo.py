"""Create random data. The same seed creates the same data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, bulk, run_transaction, uuid7
from shop.ledger.account_schemas import AccountIn
from shop.ledger.accounts import get_or_open_system_account
from shop.ledger.models import AccountPurpose
from shop.ledger.opening import OpeningRequest, open_accounts
from shop.ledger.requests import TransferRequest
from shop.ledger.service import post_transfers
from shop.orders.models import Order, OrderItem, OrderStatus
from shop.users.models import User

_FIRST_NAMES: Final = (
    "Ada",
    "Alan",
    "Barbara",
    "Claude",
    "Donald",
    "Edsger",
    "Frances",
    "Grace",
    "Hedy",
    "Ken",
    "Radia",
)
_LAST_NAMES: Final = (
    "Allen",
    "Dijkstra",
    "Hopper",
    "Knuth",
    "Lamarr",
    "Liskov",
    "Lovelace",
    "Perlman",
    "Shannon",
    "Turing",
)
_COUNTRIES: Final = ("France", "Germany", "Netherlands", "United Kingdom")
_PRODUCTS: Final = (("TEAPOT", "Brown teapot", 1295), ("LANTERN", "Storm lantern", 2150), ("CANDLE", "Candle", 85))
_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_ORDERS_PER_USER: Final = 10
_BATCH_SIZE: Final = 500


async def create_demo(
    database: Database, *, users: int, seed: int, advance: Callable[[int], None] = lambda _done: None
) -> int:
    """Create this many users, each with ten orders and an account with money. Returns how many users were new.

    Existing users of this seed, their orders and their accounts are not changed. Each transaction creates up to 500
    users. After each transaction, `advance` is called with the number of its users.
    """
    created = 0
    for first in range(0, users, _BATCH_SIZE):
        numbers = range(first, min(first + _BATCH_SIZE, users))

        async def create(session: AsyncSession, numbers: range = numbers) -> int:
            return await _create_batch(session, seed, numbers)

        created += await run_transaction(database, create)
        advance(len(numbers))
    return created


async def _create_batch(session: AsyncSession, seed: int, numbers: range) -> int:
    """Create the users with these numbers, their orders and their accounts, unless they exist.

    Returns how many users were created.
    """
    randoms = {f"demo-{seed}-{number}@shop.example": Random(f"{seed}-{number}") for number in numbers}  # noqa: S311
    existing = set(await session.scalars(select(User.email).where(User.email.in_(randoms))))
    new = {email: random for email, random in randoms.items() if email not in existing}
    ids = (await bulk.insert_many(session, User, (_draw_user(email, random) for email, random in new.items()))).keys
    orders = [
        order for user_id, random in zip(ids, new.values(), strict=True) for order in _draw_orders(user_id, random)
    ]
    await bulk.insert_many(session, Order, (order for order, _ in orders), keys=False)
    await bulk.insert_many(session, OrderItem, (item for _, items in orders for item in items), keys=False)
    if new:
        cash_in = await get_or_open_system_account(session, AccountPurpose.CASH_IN, "GBP")
        opened = await open_accounts(
            session,
            [OpeningRequest(AccountIn(name="Current account", currency="GBP", user_id=user_id)) for user_id in ids],
        )
        accounts = [result.unwrap() for result in opened]
        await post_transfers(
            session,
            [
                TransferRequest(cash_in.id, account.id, random.randrange(1_000, 1_000_000), description="first deposit")
                for account, random in zip(accounts, new.values(), strict=True)
            ],
        )
    return len(new)


def _draw_user(email: str, random: Random) -> dict[str, Any]:
    name = f"{random.choice(_FIRST_NAMES)} {random.choice(_LAST_NAMES)}"
    return {"email": email, "name": name, "country": random.choice(_COUNTRIES)}


def _draw_orders(user_id: UUID, random: Random) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The rows of a user's orders, each with the rows of its items."""
    for _ in range(_ORDERS_PER_USER):
        order_id = uuid7()
        products = [(*random.choice(_PRODUCTS), random.randint(1, 12)) for _ in range(random.randint(1, 4))]
        items = [
            {
                "order_id": order_id,
                "line_no": line_no,
                "sku": sku,
                "description": description,
                "quantity": quantity,
                "unit_price_cents": price,
            }
            for line_no, (sku, description, price, quantity) in enumerate(products, start=1)
        ]
        order = {
            "id": order_id,
            "user_id": user_id,
            "status": random.choice(list(OrderStatus)),
            "total_cents": sum(price * quantity for _, _, price, quantity in products),
            "placed_at": _START + timedelta(minutes=random.randrange(300 * 24 * 60)),
        }
        yield order, items
