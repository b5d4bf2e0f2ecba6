"""The model of a repository."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository, Base
from howdah_tests.support.sample_models import Car, Seat, User, UserRepository, Vehicle

ModelT = TypeVar("ModelT", bound=Base)
OtherT = TypeVar("OtherT")


class Tenanted(AsyncRepository[ModelT]):
    """A generic subclass."""


class TenantedUsers(Tenanted[User]): ...


class OnlyActiveUsers(TenantedUsers): ...


class WithContext(AsyncRepository[ModelT], Generic[OtherT, ModelT]):
    """The model is its second type parameter."""


class UsersWithContext(WithContext[int, User]): ...


class Mixin: ...


class MixedUsers(Mixin, UserRepository): ...


class ByArgument(AsyncRepository[User]):
    """It has the constructor of the reference."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, User)


@pytest.mark.parametrize(
    "repository", [UserRepository, TenantedUsers, OnlyActiveUsers, UsersWithContext, MixedUsers, ByArgument]
)
def test_the_model_comes_from_the_type_parameter(repository: Any) -> None:
    assert repository(AsyncSession()).model is User


def test_the_model_may_be_the_second_argument() -> None:
    assert AsyncRepository(AsyncSession(), Seat).model is Seat
    assert Tenanted(AsyncSession(), Seat).model is Seat


def test_the_second_argument_overrides_the_type_parameter() -> None:
    class Vehicles(AsyncRepository[Vehicle]): ...

    assert Vehicles(AsyncSession(), Car).model is Car


@pytest.mark.parametrize("repository", [AsyncRepository, Tenanted, type("Plain", (AsyncRepository,), {})])
def test_the_error_of_a_missing_model_says_how_to_declare_one(repository: Any) -> None:
    with pytest.raises(
        TypeError, match=r"has no model: pass it, AsyncRepository\(session, User\), or declare it, class"
    ):
        repository(AsyncSession())


def test_the_name_of_a_model_as_text_is_rejected() -> None:
    class Quoted(AsyncRepository["User"]): ...

    with pytest.raises(TypeError, match="the repository has no model"):
        Quoted(AsyncSession())
