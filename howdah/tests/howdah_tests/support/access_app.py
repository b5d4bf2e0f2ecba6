"""An application with customers, operators and their parcels, for the matrix test. It can have several faults."""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus
from typing import Any
from uuid import UUID

from fastapi import APIRouter, FastAPI, Request, Response, WebSocket
from pydantic import BaseModel
from sqlalchemy import MetaData, Text, select
from sqlalchemy.orm import Mapped, mapped_column

from howdah import NAMING_CONVENTION, AsyncRepository, Base, Database, NotFound, UUIDv7PrimaryKey
from howdah.fastapi import PUBLIC, DbSession, NotAllowed, ReadDbSession, allow, direct, find_principal
from howdah_tests.support.principals import CUSTOMER, OPERATOR, Caller, create_protected_app


class Model(Base):
    """Has its own metadata: only the tests of the matrix create these tables."""

    __abstract__ = True
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Parcel(UUIDv7PrimaryKey, Model):
    __tablename__ = "parcels"

    owner: Mapped[str] = mapped_column(Text)
    content: Mapped[str] = mapped_column(Text)


class ParcelIn(BaseModel):
    content: str


class ParcelOut(BaseModel):
    id: UUID
    owner: str
    content: str


READ = allow(CUSTOMER, OPERATOR, scope="parcels:read")
WRITE = allow(CUSTOMER, OPERATOR, scope="parcels:write")
REMOVE = allow(OPERATOR)


def create_access_app(database_url: str, *, faults: Collection[str] = ()) -> FastAPI:
    app = create_protected_app(database=lambda: Database(database_url), request_log=False, metrics=False)
    app.include_router(_build_router(frozenset(faults)))
    return app


def _build_router(faults: frozenset[str]) -> APIRouter:
    """The routes, some of which are direct ones. `faults` are those of the tests of the matrix."""
    router = APIRouter()

    async def find(db: Any, request: Request, parcel_id: UUID) -> Parcel:
        parcel = await AsyncRepository(db, Parcel).get_one(parcel_id)
        caller: Caller = find_principal(request)
        if caller.role == CUSTOMER and parcel.owner != caller.name:
            if "foreign is another error" in faults:
                raise NotFound(Parcel, ["a foreign one"])
            if "foreign is readable" not in faults:
                raise NotFound(Parcel, [parcel_id])
        return parcel

    @router.get("/parcels", dependencies=[READ])
    @direct
    async def list_parcels(request: Request, db: ReadDbSession) -> list[ParcelOut]:
        query = select(Parcel)
        caller: Caller = find_principal(request)
        if "lists need a second scope" in faults and caller.scopes is not None and "labels:read" not in caller.scopes:
            raise NotAllowed("the API key needs the scope labels:read, too")
        if caller.role == CUSTOMER and "lists have foreign rows" not in faults:
            query = query.where(Parcel.owner == caller.name)
        if "lists are empty" in faults:
            query = query.where(Parcel.owner == "nobody")
        return [ParcelOut.model_validate(each, from_attributes=True) for each in await db.scalars(query)]

    @router.get("/parcels/{parcel_id}", dependencies=[READ])
    @direct
    async def get_parcel(request: Request, parcel_id: UUID, db: ReadDbSession) -> ParcelOut:
        return ParcelOut.model_validate(await find(db, request, parcel_id), from_attributes=True)

    @router.patch("/parcels/{parcel_id}", dependencies=[WRITE])
    @direct
    async def change_parcel(request: Request, parcel_id: UUID, body: ParcelIn, db: DbSession) -> None:
        (await find(db, request, parcel_id)).content = body.content

    @router.delete("/parcels/{parcel_id}", status_code=HTTPStatus.NO_CONTENT, dependencies=[REMOVE])
    async def delete_parcel(parcel_id: UUID, db: DbSession) -> None:
        parcels = AsyncRepository(db, Parcel)
        await parcels.delete(await parcels.get_one(parcel_id))

    @router.post("/sign-in", dependencies=[READ if "sign-in has a rule" in faults else PUBLIC])
    async def post_sign_in() -> None: ...

    @router.get("/page", include_in_schema=False, dependencies=[PUBLIC if "the page is public" in faults else REMOVE])
    async def get_page() -> Response:
        return Response("page")

    @router.websocket("/changes", dependencies=[PUBLIC if "the websocket is public" in faults else REMOVE])
    async def send_changes(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()

    if "another route" in faults:
        router.get("/other", dependencies=[READ])(get_page)
    return router
