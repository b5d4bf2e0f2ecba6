"""A field that JsonView can't render is an error when the view is created, with the field and the reason."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    PlainSerializer,
    RootModel,
    SecretStr,
    StringConstraints,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from sqlalchemy import ForeignKey
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.hybrid import hybrid_method, hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from howdah import JsonView, ViewCompileError
from howdah_tests.support.sample_models import Album, Corner, Order, Specimen, Staff, Track, User
from howdah_tests.support.view_schemas import create_schema


class Other(StrEnum):
    A = "a"


class WithComputed(BaseModel):
    id: UUID

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shown(self) -> str:
        return str(self.id)


class WithValidator(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def check(cls, name: str) -> str:
        return name


class WithModelValidator(BaseModel):
    name: str

    @model_validator(mode="after")
    def check(self) -> WithModelValidator:
        return self


class WithSerializer(BaseModel):
    name: str

    @field_serializer("name")
    def hide(self, name: str) -> str:
        return "*"


class WithModelSerializer(BaseModel):
    name: str

    @model_serializer
    def hide(self) -> dict[str, str]:
        return {}


class Lower(BaseModel):
    model_config = ConfigDict(str_to_lower=True)
    name: str


class Seconds(BaseModel):
    model_config = ConfigDict(ser_json_temporal="seconds")
    created_at: datetime


class Endless(BaseModel):
    tracks: list[EndlessTrack]


class EndlessTrack(BaseModel):
    album: Endless


class Tree(BaseModel):
    branches: list[Tree] = []


class Detail(BaseModel):
    made_at: datetime = Field(default_factory=datetime.now)


def model(**fields: Any) -> type[BaseModel]:
    return create_schema(fields, BaseModel)


@pytest.mark.parametrize(
    ("mapped", "schema", "path", "reason"),
    [
        (User, model(emial=str), "Schema.emial", "no mapped attribute 'emial'"),
        (User, model(age=int), "Schema.age", "may be NULL"),
        (User, model(email=int), "Schema.email", "a field of type int doesn't fit a column of type String"),
        (User, model(id=str), "Schema.id", "a field of type str doesn't fit a column of type Uuid"),
        (User, model(email=SecretStr), "Schema.email", "doesn't fit a column"),
        (User, model(email=HttpUrl), "Schema.email", "runs in Python"),
        (User, model(email=Annotated[str, AfterValidator(str.lower)]), "Schema.email", "a validator"),
        (User, model(email=Annotated[str, PlainSerializer(str.upper)]), "Schema.email", "serializer"),
        (
            User,
            model(email=Annotated[str, StringConstraints(strip_whitespace=True)]),
            "Schema.email",
            "strip_whitespace changes its text in Python",
        ),
        (User, model(email=str | int), "Schema.email", "a field of type union doesn't fit a column"),
        (User, model(orders=model(id=UUID)), "Schema.orders", "must be a list of models for a to-many relationship"),
        (User, model(orders=list[model(nothing=int)]), "Schema.orders.nothing", "no mapped attribute"),  # type: ignore[misc]
        (User, model(orders=list[UUID]), "Schema.orders", "isn't a Pydantic model"),
        (User, model(shout=str), "Schema.shout", "isn't an SQL expression"),
        (Track, model(album=list[model(id=UUID)]), "Schema.album", "a model for a to-one relationship"),  # type: ignore[misc]
        (Specimen, model(loud=str | None), "Schema.loud", "converts its values in Python"),
        (Specimen, model(corner=Corner), "Schema.corner", "composite"),
        (Specimen, model(state=Other | None), "Schema.state", "a field of type enum doesn't fit a column"),
        (Specimen, model(rounded=Decimal | None), "Schema.rounded", "a field of type decimal doesn't fit a column"),
        (Specimen, model(tags=list[int] | None), "Schema.tags", "a list of int doesn't fit a column"),
        (Specimen, model(tags=list[list[str]] | None), "Schema.tags", "a field of type list doesn't fit a column"),
        (Order, model(details=Tree | None), "Schema.details.branches", "contains itself"),
        (Order, model(details=Detail | None), "Schema.details.made_at", "default_factory"),
        (
            Order,
            model(details=dict[str, Decimal] | None),
            "Schema.details",
            "a field of type decimal doesn't fit a value inside",
        ),
        (User, model(**{"n" * 64: str}), "Schema." + "n" * 64, "longer than 63 bytes"),
        (User, WithComputed, "WithComputed", "computed_field"),
        (User, WithValidator, "WithValidator.name", "a validator"),
        (User, WithModelValidator, "WithModelValidator", "validator"),
        (User, WithSerializer, "WithSerializer.name", "serializer"),
        (User, WithModelSerializer, "WithModelSerializer", "serializer"),
        (User, Lower, "Lower", "str_to_lower"),
        (User, Seconds, "Seconds.created_at", "ser_json_temporal"),
        (User, RootModel[dict[str, int]], "RootModel[dict[str, int]]", "isn't a Pydantic model"),
        (Album, Endless, "Endless.tracks.album", "contains itself"),
        (Staff, model(name=str, language=str), "Schema.language", "no mapped attribute"),
    ],
)
def test_the_error_contains_the_field_and_the_reason(
    mapped: type[Any], schema: type[BaseModel], path: str, reason: str
) -> None:
    with pytest.raises(ViewCompileError) as caught:
        JsonView(mapped, schema)
    assert caught.value.path == path
    assert reason in caught.value.reason


class Separate(DeclarativeBase):
    pass


class Keyword(Separate):
    __tablename__ = "keywords"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    user_id: Mapped[int] = mapped_column(ForeignKey("keyed.id"))


class Keyed(Separate):
    __tablename__ = "keyed"
    id: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[int]
    keywords: Mapped[list[Keyword]] = relationship()
    words: AssociationProxy[list[str]] = association_proxy("keywords", "text")

    @hybrid_property
    def doubled(self) -> int:
        return int(self.id) * 2

    @hybrid_property
    def greeting(self) -> str:
        return "Hello %d" % self.id  # noqa: UP031

    @hybrid_property
    def parity(self) -> str:
        return "even" if self.id % 2 == 0 else "odd"

    @hybrid_method
    def times(self, factor: int) -> int:
        return self.id * factor


@pytest.mark.parametrize(
    ("schema", "path", "reason"),
    [
        (model(words=list[str]), "Schema.words", "an association proxy: nest a model of 'keywords'"),
        (model(keywords=list[model(words=str)]), "Schema.keywords.words", "Keyword has no mapped attribute 'words'"),  # type: ignore[misc]
        (
            model(doubled=int),
            "Schema.doubled",
            "isn't an SQL expression of Keyed: give the hybrid property an `expression`",
        ),
        (
            model(greeting=str),
            "Schema.greeting",
            "isn't an SQL expression of Keyed: give the hybrid property an `expression`",
        ),
        (
            model(parity=str),
            "Schema.parity",
            "isn't an SQL expression of Keyed: give the hybrid property an `expression`",
        ),
        (model(times=int), "Schema.times", "isn't an SQL expression of Keyed"),
        (
            model(id=Annotated[str, StringConstraints(to_lower=True)]),
            "Schema.id",
            "to_lower changes its text in Python: use it in the schema for input",
        ),
    ],
)
def test_the_error_for_an_attribute_that_is_computed_in_python_says_what_to_do(
    schema: type[BaseModel], path: str, reason: str
) -> None:
    with pytest.raises(ViewCompileError) as caught:
        JsonView(Keyed, schema)
    assert caught.value.path == path
    assert reason in caught.value.reason


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)

    created_at: int


def test_the_error_for_an_alias_without_an_attribute_says_how_to_use_the_name() -> None:
    with pytest.raises(
        ViewCompileError, match=r"no attribute 'createdAt', .*: set validate_by_name=True in the model_config"
    ):
        JsonView(Keyed, Camel)


def test_a_related_row_that_a_filter_may_hide_must_be_optional() -> None:
    where = {Album: lambda album: album.title.is_not(None)}
    with pytest.raises(ViewCompileError, match=r"Schema\.album can't be rendered: the related row may not exist"):
        JsonView(Track, model(album=model(id=UUID)), where=where)
    JsonView(Track, model(album=model(id=UUID) | None), where=where)
