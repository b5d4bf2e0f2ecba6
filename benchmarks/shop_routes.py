"""The contenders of `shop-http` that are not Shop, on Shop's tables: `python -m benchmarks.shop_routes KIND PORT`.

- `bare` is an ASGI application without a framework, on uvicorn. It awaits the same view, page and ledger as Shop.
- `bare-limited` is the same application on `howdah.serving`, the server of `shop serve`.
- `peers` has routes that are written with FastAPI and Litestar, on uvicorn.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final
from urllib.parse import parse_qs
from uuid import UUID

import orjson
import uvicorn
from fastapi import Query, Request, Response

import shop.tables  # noqa: F401 (tables refer to each other)
from benchmarks.identity import STAFF_ID
from benchmarks.user_routes import Routes, UserTables, add_peers, open_peers
from howdah import NotFound
from howdah.fastapi import list_response
from howdah.serving import serve
from shop.identity.principals import Principal, Role
from shop.ledger.group_commit import Ledger
from shop.ledger.http.dependencies import RequiredIdempotencyKey
from shop.ledger.http.transfer_bodies import build_request
from shop.ledger.requests import TransferRequest
from shop.ledger.transfer_schemas import TransferIn, TransferOut, encode_json, serialize_transfer
from shop.memory import collect_less_often, freeze_loaded_objects
from shop.postgres import open_staff_database, open_system_database
from shop.settings import Settings
from shop.user_orders.schemas import UserWithOrdersOut
from shop.user_orders.service import USER_WITH_ORDERS_VIEW
from shop.users.models import User
from shop.users.schemas import UserPageParameters
from shop.users.service import USER_VIEW

_ADMIN: Final = Principal(STAFF_ID, Role.ADMIN)

_JSON_STATEMENT: Final = """
SELECT json_build_object(
    'id', u.id, 'email', u.email, 'name', u.name, 'country', u.country, 'created_at', u.created_at,
    'updated_at', u.updated_at, 'version', u.version,
    'orders', (
        SELECT coalesce(json_agg(json_build_object(
            'id', o.id, 'reference', o.reference, 'status', o.status, 'currency', o.currency,
            'total_cents', o.total_cents, 'placed_at', o.placed_at
        ) ORDER BY o.placed_at, o.id), '[]')
        FROM orders o WHERE o.user_id = u.id
    )
)
FROM users u WHERE u.id = $1
"""


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    """The readers and the ledger, on the pools that Shop uses for operators and admins."""
    assert settings.database_url is not None
    async with (
        open_staff_database(settings.database_url, settings) as staff,
        open_system_database(settings.database_url, settings) as system,
        USER_WITH_ORDERS_VIEW.open(staff) as users,
        USER_VIEW.open(staff) as user_pages,
        Ledger(system) as ledger,
    ):
        yield {"users": users, "user_pages": user_pages, "ledger": ledger}


class BareApplication:
    """Three routes and a constant response, as fast as they can be written in Python, without any checks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Find the route of the request, and send its response."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
            return
        path: str = scope["path"]
        if scope["method"] == "POST":
            await self._post_transfer(scope, receive, send)
        elif path == "/users":
            page = await self._user_pages.page(limit=int(parse_qs(scope["query_string"])[b"limit"][0]))
            ends = orjson.dumps({"next": page.next, "previous": page.previous})
            await _send(send, 200, b'{"items":[' + b",".join(page.items) + b"]," + ends[1:])
        elif path == "/constant":
            await _send(send, 200, b"{}")
        else:
            try:
                body = await self._users.get(UUID(path[7:]))
            except NotFound:
                await _send(send, 404, b"{}")
            else:
                await _send(send, 200, bytes(body), [(b"etag", body.etag.encode())])

    async def _post_transfer(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = message["body"]
        while message.get("more_body", False):
            message = await receive()
            body += message["body"]
        content = orjson.loads(body)
        key = next(value for name, value in scope["headers"] if name == b"idempotency-key")
        request = TransferRequest(
            UUID(content["from_account_id"]),
            UUID(content["to_account_id"]),
            content["amount"],
            key=key.decode(),
            scope=_ADMIN.key,
        )
        transfer = (await self._ledger.submit(request)).unwrap()
        location = f"/transfers/{transfer.id}".encode()
        await _send(send, 201, encode_json(serialize_transfer(transfer)), [(b"location", location)])

    async def _run_lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        async with open_state(self._settings) as state:
            self._users, self._user_pages, self._ledger = state["users"], state["user_pages"], state["ledger"]
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def _send(send: Any, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    all_headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


def create_peers(settings: Settings) -> Routes:
    """The routes of the peers. Those that don't use Howdah connect as the owner of the tables: no policies apply."""
    owner_url = settings.owner_database_url
    assert owner_url is not None

    @asynccontextmanager
    async def open_all() -> AsyncIterator[dict[str, Any]]:
        async with open_peers(owner_url) as peers, open_state(settings) as state:
            yield {**peers, **state}

    routes = Routes(open_all)
    add_peers(routes, UserTables(User, UserWithOrdersOut, _JSON_STATEMENT))

    @routes.route("page", "")
    async def get_page(parameters: Annotated[UserPageParameters, Query()], request: Request) -> Response:
        return await list_response(request.state.user_pages, parameters)

    @routes.route("transfers", "", method="POST", status_code=201, response_model=TransferOut)
    async def post_transfer(body: TransferIn, request: Request, idempotency_key: RequiredIdempotencyKey) -> Response:
        result = await request.state.ledger.submit(build_request(body, {}, _ADMIN, key=idempotency_key))
        transfer = result.unwrap()
        location = {"Location": f"/transfers/{transfer.id}"}
        return Response(encode_json(serialize_transfer(transfer)), 201, location, "application/json")

    return routes


def main() -> None:
    """Run the command."""
    kind, port = sys.argv[1:]
    settings = Settings()
    app = create_peers(settings) if kind == "peers" else BareApplication(settings)
    freeze_loaded_objects()
    collect_less_often()
    if kind == "bare-limited":
        serve(app, port=int(port), stop_pause=0)
    else:
        uvicorn.run(app, port=int(port), log_config=None, access_log=False)


if __name__ == "__main__":
    main()
