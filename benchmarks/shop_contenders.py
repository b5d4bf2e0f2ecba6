"""The contenders of `shop-http`: the operations, and the routes of Shop, of the bare application and of the peers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.comparison import Role

CONNECTIONS: Final = (1, 16, 64, 256)
ONE, MANY = 1, 64
PAGE_SIZE: Final = 50

# The names of the servers. Those of Shop and of the bare application are also the names of contenders.
SHOP, BARE, LIMITED_BARE, PEERS = "Shop", "bare ASGI", "bare ASGI, howdah.serving", "peers"
WORKERS: Final = {f"{SHOP}, {count} workers": count for count in (2, 4)}


@dataclass(frozen=True, slots=True)
class Operation:
    name: str
    queue: str
    """The label of its batches in Shop's metrics."""
    is_post: bool = False
    has_ids: bool = False


USER: Final = Operation("GET /users/{id}", queue="user", has_ids=True)
PAGE: Final = Operation(f"GET /users?limit={PAGE_SIZE}", queue="user_list")
TRANSFER: Final = Operation("POST /transfers", queue="transfer", is_post=True)
CONSTANT: Final = Operation("constant response", queue="")


@dataclass(frozen=True, slots=True)
class Route:
    """A contender without a number of connections."""

    operation: Operation
    name: str
    role: Role
    server: str
    prefix: str
    connections: tuple[int, ...] = (MANY,)
    is_for_customers: bool = False

    def named(self, connections: int) -> str:
        return f"{self.operation.name}, {self.name}, {connections} connection{'' if connections == 1 else 's'}"

    @property
    def is_shop(self) -> bool:
        return self.role == "howdah"


def _shop_and_bare(operation: Operation, prefix: str, connections: tuple[int, ...] = CONNECTIONS) -> list[Route]:
    return [
        Route(operation, SHOP, "howdah", SHOP, prefix, connections),
        Route(operation, BARE, "baseline", BARE, prefix, connections),
        Route(operation, LIMITED_BARE, "baseline", LIMITED_BARE, prefix),
    ]


FASTAPI: Final = "FastAPI"
ASYNCPG: Final = "asyncpg with json_agg, FastAPI"
REFERENCE: Final = "reference"
_FEW_AND_MANY: Final = (ONE, MANY)
ROUTES: Final = (
    *_shop_and_bare(USER, "/users/"),
    Route(USER, f"{SHOP}, customers", "howdah", SHOP, "/users/", is_for_customers=True),
    *(Route(USER, name, "howdah", name, "/users/") for name in WORKERS),
    Route(USER, FASTAPI, "peer", PEERS, "/view/", _FEW_AND_MANY),
    Route(USER, ASYNCPG, "baseline", PEERS, "/asyncpg/", _FEW_AND_MANY),
    Route(USER, REFERENCE, "reference", PEERS, "/reference/", _FEW_AND_MANY),
    Route(USER, "advanced-alchemy, FastAPI", "peer", PEERS, "/advanced-alchemy/", _FEW_AND_MANY),
    Route(USER, "advanced-alchemy, Litestar", "peer", PEERS, "/litestar/", _FEW_AND_MANY),
    # 256 pages at once take longer than the service lets requests wait: its load limit rejects some of them.
    *_shop_and_bare(PAGE, f"/users?limit={PAGE_SIZE}", CONNECTIONS[:-1]),
    Route(PAGE, FASTAPI, "peer", PEERS, f"/page?limit={PAGE_SIZE}"),
    *_shop_and_bare(TRANSFER, "/transfers"),
    *(Route(TRANSFER, name, "howdah", name, "/transfers") for name in WORKERS),
    Route(TRANSFER, FASTAPI, "peer", PEERS, "/transfers"),
    *(Route(CONSTANT, name, "baseline", name, "/constant") for name in (BARE, LIMITED_BARE)),
)
