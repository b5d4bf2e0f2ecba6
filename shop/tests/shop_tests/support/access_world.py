"""The users of the matrix test, with their accounts, orders, transfers, API keys and credentials."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Final
from unittest import mock
from uuid import UUID, uuid4

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop.identity import tokens
from shop.identity.api_keys.formats import generate_key
from shop.identity.api_keys.models import ApiKey
from shop.identity.clients import Client
from shop.identity.models import SignInSession
from shop.identity.principals import Principal, Role
from shop.identity.sessions import Lifetime, Lifetimes, OpenSession, open_session
from shop.ledger.account_schemas import AccountIn
from shop.ledger.accounts import open_account
from shop.ledger.requests import TransferRequest
from shop.ledger.service import post_transfers
from shop.orders.models import Order, OrderItem
from shop_tests.support.accounts import Person, create_person
from shop_tests.support.identity import TEST_SIGNER

BALANCE: Final = 867_531_000_500
BALANCE_MARK: Final = str(BALANCE)[:9]
"""The first digits of the balance of the account from which and to which customers pay. No customer may see them."""

SAME_ORIGIN: Final = {"Sec-Fetch-Site": "same-origin"}
LIFETIMES: Final = Lifetimes(customers=Lifetime(idle=timedelta(days=1), total=timedelta(days=1)))

_numbers = count(1)


def new_name() -> str:
    return f"matrix-{next(_numbers)}"


def new_email() -> str:
    return f"{new_name()}@example.com"


@dataclass(frozen=True, slots=True)
class Things:
    """A customer, with the ids of their rows."""

    person: Person
    account_id: UUID
    order_id: UUID
    transfer_id: UUID
    """A transfer to the account."""
    key_id: UUID

    @property
    def user_id(self) -> UUID:
        return self.person.user_id


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """`own` belongs to the customer who sends requests, and `foreign` to another customer.

    `counterparty_id` is the account of a third customer: the other side of all transfers. `till_id` belongs to nobody.
    """

    database: Database
    own: Things
    foreign: Things
    operator: Person
    admin: Person
    counterparty_id: UUID
    till_id: UUID
    outgoing_id: UUID
    """A transfer from the own account. `outgoing_hold_id` is a hold on it."""
    outgoing_hold_id: UUID
    ended_sessions: dict[str, UUID]
    _keys: dict[tuple[str, frozenset[str], bool], str] = field(default_factory=dict)

    def person(self, role: str) -> Person:
        return {Role.CUSTOMER: self.own.person, Role.OPERATOR: self.operator, Role.ADMIN: self.admin}[Role(role)]

    async def create_order(self, user_id: UUID) -> UUID:
        async with self.database.begin() as session:
            return await _create_order(session, user_id)

    async def move(self, from_account_id: UUID, to_account_id: UUID, *, pending_seconds: int | None = None) -> UUID:
        """Post a transfer of 1, or with `pending_seconds` a hold."""
        async with self.database.begin() as session:
            return await _move(session, from_account_id, to_account_id, 1, pending_seconds=pending_seconds)

    async def open_session(self, person: Person, role: str = Role.CUSTOMER) -> OpenSession:
        async with self.database.begin() as session:
            return await open_session(session, person.user_id, Role(role), Client("192.0.2.1"), LIFETIMES)

    async def create_key(self, person: Person) -> UUID:
        async with self.database.begin() as session:
            return (await _create_key(session, person, frozenset({"orders:read"})))[0]

    # credentials

    def token(self, role: str) -> dict[str, str]:
        return _bearer(_sign(self.person(role), role))

    def cookie(self, role: str) -> dict[str, str]:
        return {"Cookie": f"__Host-shop-access={_sign(self.person(role), role)}", **SAME_ORIGIN}

    def expired_token(self, role: str) -> dict[str, str]:
        return _bearer(_sign(self.person(role), role, now=datetime.now(UTC) - timedelta(hours=1)))

    def token_for_another_audience(self, role: str) -> dict[str, str]:
        with mock.patch.object(tokens, "AUDIENCE", "another-service"):
            return self.token(role)

    def token_of_an_ended_session(self, role: str) -> dict[str, str]:
        return _bearer(_sign(self.person(role), role, session_id=self.ended_sessions[role]))

    async def api_key(self, role: str, scopes: frozenset[str]) -> dict[str, str]:
        return await self._get_key(role, scopes)

    async def revoked_key(self, role: str) -> dict[str, str]:
        return await self._get_key(role, frozenset({"orders:read"}), is_revoked=True)

    async def _get_key(self, role: str, scopes: frozenset[str], *, is_revoked: bool = False) -> dict[str, str]:
        named = role, scopes, is_revoked
        if named not in self._keys:
            async with self.database.begin() as session:
                _, self._keys[named] = await _create_key(session, self.person(role), scopes, is_revoked=is_revoked)
        return {"X-API-Key": self._keys[named]}


async def create_world(database: Database) -> World:
    """Fill the database. The service must be started later, because it reads the ended sessions at its start."""
    people = [
        await create_person(database, new_email(), role=role)
        for role in (Role.CUSTOMER, Role.CUSTOMER, Role.CUSTOMER, Role.OPERATOR, Role.ADMIN)
    ]
    customer, other, third, operator, admin = people
    ended = {Role.CUSTOMER: customer, Role.OPERATOR: operator, Role.ADMIN: admin}
    async with database.begin() as session:
        till, counterparty, own, foreign = [
            (
                await open_account(
                    session,
                    AccountIn(name=new_name(), currency="GBP", user_id=user_id, allows_negative=user_id is None),
                )
            ).id
            for user_id in (None, third.user_id, customer.user_id, other.user_id)
        ]
        await _move(session, till, counterparty, BALANCE)
        for account in (own, foreign):
            await _move(session, till, account, 1_000_000)
        things = [
            Things(
                person=person,
                account_id=account,
                order_id=await _create_order(session, person.user_id),
                transfer_id=await _move(session, counterparty, account, 1),
                key_id=(await _create_key(session, person, frozenset({"orders:read"})))[0],
            )
            for person, account in ((customer, own), (other, foreign))
        ]
        outgoing = await _move(session, own, counterparty, 1)
        outgoing_hold = await _move(session, own, counterparty, 1, pending_seconds=3600)
        now = datetime.now(UTC)
        sessions = {
            str(role): SignInSession(user_id=each.user_id, expires_at=now, ends_at=now, revoked_at=now)
            for role, each in ended.items()
        }
        session.add_all(sessions.values())
        await session.flush()
    return World(
        database=database,
        own=things[0],
        foreign=things[1],
        operator=operator,
        admin=admin,
        counterparty_id=counterparty,
        till_id=till,
        outgoing_id=outgoing,
        outgoing_hold_id=outgoing_hold,
        ended_sessions={role: each.id for role, each in sessions.items()},
    )


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _sign(person: Person, role: str, *, session_id: UUID | None = None, now: datetime | None = None) -> str:
    return TEST_SIGNER.sign(Principal(person.user_id, Role(role), session_id=session_id or uuid4()), now=now)


async def _create_order(session: AsyncSession, user_id: UUID) -> UUID:
    item = OrderItem(line_no=1, sku="TEA", quantity=1, unit_price_cents=1)
    order = Order(user_id=user_id, total_cents=1, items=[item])
    session.add(order)
    await session.flush()
    return order.id


async def _move(
    session: AsyncSession,
    from_account_id: UUID,
    to_account_id: UUID,
    amount: int,
    *,
    pending_seconds: int | None = None,
) -> UUID:
    request = TransferRequest(from_account_id, to_account_id, amount, pending_seconds=pending_seconds)
    [result] = await post_transfers(session, [request])
    return result.unwrap().id


async def _create_key(
    session: AsyncSession, person: Person, scopes: frozenset[str], *, is_revoked: bool = False
) -> tuple[UUID, str]:
    """The id and the text of a new key."""
    text, parts = generate_key()
    now = datetime.now(UTC)
    values = {
        "user_id": person.user_id,
        "name": new_name(),
        "prefix": parts.prefix,
        "secret_hash": parts.secret_hash,
        "scopes": sorted(scopes),
        "expires_at": now + timedelta(days=1),
        "revoked_at": now if is_revoked else None,
    }
    id_ = await session.scalar(insert(ApiKey).values(**values).returning(ApiKey.id))
    assert id_ is not None
    return id_, text
