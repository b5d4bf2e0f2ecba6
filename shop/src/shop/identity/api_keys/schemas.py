"""The bodies of requests and responses, and the parameters of the list."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from howdah import Filter
from howdah.fastapi import PageParameters, VisibleText
from shop.identity.api_keys.models import MAX_NAME, ApiKey
from shop.identity.scopes import Scope

MAX_DAYS: Final = 366


class ApiKeyIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, VisibleText(max_length=MAX_NAME), Field(examples=["warehouse"])]
    scopes: Annotated[
        frozenset[Scope], Field(min_length=1, description="What the key may do", examples=[["orders:read"]])
    ]
    expires_in_days: Annotated[int, Field(ge=1, le=MAX_DAYS, description="The key expires after this time")] = 90


class ApiKeyOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    user_id: UUID
    name: str
    prefix: str = Field(description="The beginning of the key, to recognize it", examples=["shop_0123456789ab"])
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None = Field(description="The last use, up to two minutes late")
    revoked_at: datetime | None


class ApiKeyCreatedOut(ApiKeyOut):
    key: str = Field(description="The key, for the header `X-API-Key`. It is shown only once")


class ApiKeyPageParameters(PageParameters):
    user_id: Annotated[UUID | None, Filter(ApiKey.user_id)] = Field(default=None, description="The keys of this user")
