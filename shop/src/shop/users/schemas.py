"""The bodies of requests and responses, and the parameters of lists."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, EmailStr, Field, StringConstraints

from howdah import Filter
from howdah.fastapi import PageParameters, RFC3339Datetime, VisibleText
from shop.users.models import User

MAX_EMAIL: Final = 254

Email = Annotated[EmailStr, AfterValidator(str.lower), Field(max_length=MAX_EMAIL, examples=["ada@example.com"])]
Name = Annotated[str, VisibleText(max_length=100), Field(examples=["Ada"])]
Country = Annotated[str, VisibleText(max_length=100)]


class UserIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: Email
    name: Name
    country: Country | None = Field(default=None, examples=["United Kingdom"])


class UserChange(BaseModel):
    """Fields that the body doesn't have stay unchanged."""

    model_config = ConfigDict(extra="forbid")

    # Every field is optional. Only the fields that the client sent are used, so the defaults are never used. They are
    # factories, because the OpenAPI document shows a default that is a value.
    email: Email = Field(default_factory=str)
    name: Name = Field(default_factory=str)
    country: Country | None = None


class UserOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    email: str
    name: str
    country: str | None
    created_at: datetime
    updated_at: datetime
    version: int


class UserPageParameters(PageParameters):
    email_prefix: Annotated[
        Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(str.lower)] | None,
        Filter(User.email, "prefix"),
    ] = Field(default=None, description="The beginning of the address, in upper or lower case")
    country: Annotated[Annotated[str, StringConstraints(max_length=100)] | None, Filter(User.country)] = None
    created_from: Annotated[RFC3339Datetime | None, Filter(User.created_at, ">=")] = None
    created_before: Annotated[RFC3339Datetime | None, Filter(User.created_at, "<")] = None


class BulkCreatedOut(BaseModel):
    model_config = ConfigDict(extra="forbid")

    created: int = Field(examples=[1000])
