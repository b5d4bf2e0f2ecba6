"""The ordinary clients. Each one sends one request at a time, and pauses between two requests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID, uuid4

import orjson

from soak.bad_day import rules
from soak.bad_day.model import UPLOAD_USERS, AcknowledgedTransfer, Model
from soak.bad_day.traffic import Client, Traffic
from soak.bad_day.wire import Answer

CROWD: Final = 40
"""All clients together stay below the number of requests that the service admits at any load."""
_JSON: Final = {"Content-Type": "application/json"}
_NDJSON: Final = {"Content-Type": "application/x-ndjson"}
_MAX_AMOUNT: Final = 400
_REPEAT_SHARE: Final = 0.2
_LISTS: Final = ("/users?limit=50", "/orders?limit=50&sort=-placed_at", "/accounts?limit=50", "/transfers?limit=50")

Act = Callable[["Session"], Awaitable[None]]


class Session:
    """One client, with what it needs."""

    def __init__(self, traffic: Traffic, model: Model, seed: int, stop: asyncio.Event) -> None:
        self.rng = random.Random(seed)
        self.client = Client(traffic, self.rng)
        self.traffic = traffic
        self.model = model
        self.stop = stop

    async def run(self, act: Act, pause: tuple[float, float]) -> None:
        """Act until the end of the run."""
        try:
            while not self.stop.is_set():
                await act(self)
                await asyncio.sleep(self.rng.uniform(*pause))
        finally:
            self.client.close()

    def new_key(self) -> str:
        return str(uuid4())

    async def create(
        self, kind: rules.Kind, path: str, body: bytes, key: str, content: dict[str, str]
    ) -> Answer | None:
        """Send a request with a key until it is answered. Repeat some, which must give the same answer."""
        headers = {**content, "Idempotency-Key": key}
        answer = await self.client.send_until_answered(kind, "POST", path, body, headers, stop=self.stop)
        if answer is not None and self.rng.random() < _REPEAT_SHARE:
            again = await self.client.send_until_answered(kind, "POST", path, body, headers, stop=self.stop)
            if again is not None:
                self.model.replays += 1
                if (again.status, again.body) != (answer.status, answer.body):
                    self.traffic.violations.add(
                        f"{kind.name}: another answer to a repeated key",
                        f"{answer.status} {answer.body[:200]!r}, then {again.status} {again.body[:200]!r}",
                    )
        return answer


async def read_user(session: Session) -> None:
    id_ = session.rng.choice(session.model.user_ids)
    answer = await session.client.send(rules.READ, "GET", f"/users/{id_}")
    if answer is not None and answer.status == 200 and orjson.loads(answer.body)["id"] != id_:
        session.traffic.violations.add("read: another row", f"asked for {id_}: {answer.body[:100]!r}")


async def read_many_users(session: Session) -> None:
    """Many clients at the same moment: their reads share a batch."""
    clients = [Client(session.traffic, session.rng) for _ in range(CROWD)]
    try:
        ids = session.rng.choices(session.model.user_ids, k=CROWD)
        await asyncio.gather(
            *(each.send(rules.READ, "GET", f"/users/{id_}") for each, id_ in zip(clients, ids, strict=True))
        )
    finally:
        for each in clients:
            each.close()


async def read_account(session: Session) -> None:
    await session.client.send(rules.READ, "GET", f"/accounts/{session.rng.choice(session.model.accounts)}")


async def read_list(session: Session) -> None:
    await session.client.send(rules.LIST, "GET", session.rng.choice(_LISTS))


async def post_transfer(session: Session) -> None:
    source, target = session.rng.sample(session.model.accounts, 2)
    amount, key = session.rng.randint(1, _MAX_AMOUNT), session.new_key()
    body = orjson.dumps({"from_account_id": source, "to_account_id": target, "amount": amount})
    answer = await session.create(rules.TRANSFER, "/transfers", body, key, _JSON)
    if answer is None:
        return
    if answer.status == 201:
        id_ = UUID(orjson.loads(answer.body)["id"])
        session.model.posted[key] = AcknowledgedTransfer(id_, source, target, amount)
    else:
        session.model.refused.add(key)


async def place_order(session: Session) -> None:
    article = session.new_key()
    content: dict[str, Any] = {"user_id": session.rng.choice(session.model.user_ids)}
    content["items"] = [{"sku": article, "quantity": 1, "unit_price_cents": 100}]
    answer = await session.create(rules.ORDER, "/orders", orjson.dumps(content), session.new_key(), _JSON)
    if answer is not None and answer.status == 201:
        session.model.orders[article] = orjson.loads(answer.body)["id"]


async def create_user(session: Session) -> None:
    email = f"one-{session.new_key()}@example.com"
    body = orjson.dumps({"email": email, "name": "Ada"})
    answer = await session.create(rules.USER, "/users", body, session.new_key(), _JSON)
    if answer is not None and answer.status == 201:
        session.model.users[email] = orjson.loads(answer.body)["id"]


async def upload_users(session: Session) -> None:
    prefix = f"many-{session.new_key()}"
    lines = (orjson.dumps({"email": f"{prefix}-{n}@example.com", "name": "Ada"}) for n in range(UPLOAD_USERS))
    answer = await session.create(rules.BULK, "/users/bulk", b"\n".join(lines), session.new_key(), _NDJSON)
    if answer is not None and answer.status == 201:
        session.model.uploads[prefix] = orjson.loads(answer.body)["created"]


async def export_orders(session: Session) -> None:
    """Export the orders of one user, and compare them with those that are acknowledged."""
    user_id = session.rng.choice(session.model.user_ids)
    answer = await session.client.send(rules.EXPORT, "GET", f"/orders/export?user_id={user_id}")
    if answer is not None and answer.status == 200:
        others = [line for line in answer.body.splitlines() if orjson.loads(line)["user_id"] != user_id]
        if others or not answer.body:
            session.traffic.violations.add("export: wrong rows", f"of {user_id}: {answer.body[:200]!r}")


# How many clients there are of each kind, and how long they pause, in seconds.
LOAD: Final[tuple[tuple[Act, int, tuple[float, float]], ...]] = (
    (read_user, 8, (0.02, 0.2)),
    (read_many_users, 1, (1.0, 3.0)),
    (read_account, 3, (0.05, 0.3)),
    (read_list, 4, (0.1, 0.5)),
    (post_transfer, 8, (0.05, 0.3)),
    (place_order, 3, (0.1, 0.5)),
    (create_user, 2, (0.2, 0.6)),
    (upload_users, 1, (2.0, 6.0)),
    (export_orders, 2, (0.3, 1.0)),
)


def start_clients(
    traffic: Traffic, model: Model, seed: int, stop: asyncio.Event, load: float
) -> list[asyncio.Task[None]]:
    """Start all clients. `load` divides their pauses."""
    rng = random.Random(seed)
    return [
        asyncio.create_task(
            Session(traffic, model, rng.getrandbits(32), stop).run(act, (shortest / load, longest / load))
        )
        for act, count, (shortest, longest) in LOAD
        for _ in range(count)
    ]
