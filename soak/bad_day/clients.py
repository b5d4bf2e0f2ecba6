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
"""Few enough that all clients together send fewer requests at a time than the service admits under any load."""
_JSON: Final = {"Content-Type": "application/json"}
_NDJSON: Final = {"Content-Type": "application/x-ndjson"}
_MAX_AMOUNT: Final = 400
_REPEAT_SHARE: Final = 0.2
_LISTS: Final = ("/users?limit=50", "/orders?limit=50&sort=-placed_at", "/accounts?limit=50", "/transfers?limit=50")

Action = Callable[["Actor"], Awaitable[None]]


class Actor:
    """One ordinary client. It repeats one action, with pauses."""

    def __init__(self, traffic: Traffic, model: Model, seed: int, stop: asyncio.Event) -> None:
        self.rng = random.Random(seed)
        self.client = Client(traffic, self.rng)
        self.traffic = traffic
        self.model = model
        self.stop = stop

    async def run(self, act: Action, pause: tuple[float, float]) -> None:
        """Repeat the action until the end of the run. `pause` has the shortest and the longest pause in seconds."""
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
        """Send a request with a key until it is answered. Some are sent again: the answer must be the same."""
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


async def read_user(actor: Actor) -> None:
    id_ = actor.rng.choice(actor.model.user_ids)
    answer = await actor.client.send(rules.READ, "GET", f"/users/{id_}")
    if answer is not None and answer.status == 200 and orjson.loads(answer.body)["id"] != id_:
        actor.traffic.violations.add("read: another row", f"asked for {id_}: {answer.body[:100]!r}")


async def read_many_users(actor: Actor) -> None:
    """Many clients at the same moment: their reads share a batch."""
    clients = [Client(actor.traffic, actor.rng) for _ in range(CROWD)]
    try:
        ids = actor.rng.choices(actor.model.user_ids, k=CROWD)
        await asyncio.gather(
            *(each.send(rules.READ, "GET", f"/users/{id_}") for each, id_ in zip(clients, ids, strict=True))
        )
    finally:
        for each in clients:
            each.close()


async def read_account(actor: Actor) -> None:
    await actor.client.send(rules.READ, "GET", f"/accounts/{actor.rng.choice(actor.model.accounts)}")


async def read_list(actor: Actor) -> None:
    await actor.client.send(rules.LIST, "GET", actor.rng.choice(_LISTS))


async def post_transfer(actor: Actor) -> None:
    source, target = actor.rng.sample(actor.model.accounts, 2)
    amount, key = actor.rng.randint(1, _MAX_AMOUNT), actor.new_key()
    body = orjson.dumps({"from_account_id": source, "to_account_id": target, "amount": amount})
    answer = await actor.create(rules.TRANSFER, "/transfers", body, key, _JSON)
    if answer is None:
        return
    if answer.status == 201:
        id_ = UUID(orjson.loads(answer.body)["id"])
        actor.model.posted[key] = AcknowledgedTransfer(id_, source, target, amount)
    else:
        actor.model.refused.add(key)


async def place_order(actor: Actor) -> None:
    article = actor.new_key()
    content: dict[str, Any] = {"user_id": actor.rng.choice(actor.model.user_ids)}
    content["items"] = [{"sku": article, "quantity": 1, "unit_price_cents": 100}]
    answer = await actor.create(rules.ORDER, "/orders", orjson.dumps(content), actor.new_key(), _JSON)
    if answer is not None and answer.status == 201:
        actor.model.orders[article] = orjson.loads(answer.body)["id"]


async def create_user(actor: Actor) -> None:
    email = f"one-{actor.new_key()}@example.com"
    body = orjson.dumps({"email": email, "name": "Ada"})
    answer = await actor.create(rules.USER, "/users", body, actor.new_key(), _JSON)
    if answer is not None and answer.status == 201:
        actor.model.users[email] = orjson.loads(answer.body)["id"]


async def upload_users(actor: Actor) -> None:
    prefix = f"many-{actor.new_key()}"
    lines = (orjson.dumps({"email": f"{prefix}-{n}@example.com", "name": "Ada"}) for n in range(UPLOAD_USERS))
    answer = await actor.create(rules.BULK, "/users/bulk", b"\n".join(lines), actor.new_key(), _NDJSON)
    if answer is not None and answer.status == 201:
        actor.model.uploads[prefix] = orjson.loads(answer.body)["created"]


async def export_orders(actor: Actor) -> None:
    """Export the orders of one user, and check that they are only of this user."""
    user_id = actor.rng.choice(actor.model.user_ids)
    answer = await actor.client.send(rules.EXPORT, "GET", f"/orders/export?user_id={user_id}")
    if answer is not None and answer.status == 200:
        others = [line for line in answer.body.splitlines() if orjson.loads(line)["user_id"] != user_id]
        if others or not answer.body:
            actor.traffic.violations.add("export: wrong rows", f"of {user_id}: {answer.body[:200]!r}")


# How many clients there are of each kind, and how long they pause, in seconds.
LOAD: Final[tuple[tuple[Action, int, tuple[float, float]], ...]] = (
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
            Actor(traffic, model, rng.getrandbits(32), stop).run(act, (shortest / load, longest / load))
        )
        for act, count, (shortest, longest) in LOAD
        for _ in range(count)
    ]
