"""The class hierarchy of errors, and the table of SQLSTATEs that are mapped to them."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import asyncpg
import pytest
from sqlalchemy import exc
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

import howdah
from howdah import errors
from howdah._error_translation import BY_SQLSTATE
from howdah.fastapi import HTTP_STATUS_BY_ERROR
from howdah_tests.support.pickling import pickle_roundtrip
from howdah_tests.support.sample_models import User

# The decision for each code of the driver, by its two first characters and then for single codes. A new version of the
# driver may know more codes: decide them here and in `BY_SQLSTATE`.
DECISIONS = {
    errors.Unavailable: "08 28 53 55006 55P03 57 58 F0 25P03 25P04 40003 HV001 HV014 HV00N",
    errors.TransactionConflict: "26 40 72",
    errors.InvalidValue: "10 22 54",
    errors.IntegrityViolation: "23 40002 44",
    errors.InvalidStatement: ("03 09 0A 0B 0F 0L 0P 0Z 20 21 24 25 27 2B 2D 2F 34 38 39 3B 3D 3F 42 54011 54023 55 HV"),
    errors.ReadOnly: "25006",
    errors.ServerFault: "XX",
    errors.DatabaseError: "P0",
}
# After these codes the changes may have been written. After every other one PostgreSQL has rolled them back, or nothing
# was sent.
UNKNOWN_OUTCOME = {
    *("08000", "08003", "08006", "08007", "08P01", "25P03", "25P04"),
    *("40003", "57P01", "57P02", "57P04", "57P05"),
}


@pytest.mark.parametrize(
    "error",
    [
        errors.NotFound(User, [1, 2, 3, 4, 5, 6, 7]),
        errors.NotFound(User, [{"email": "a", "age": 1}]),
        errors.MultipleRowsFound(User, ["email", "name"]),
        errors.UnknownAttribute(User, "mail", ["email", "name"]),
        errors.InvalidCursor("damaged"),
        errors.NestedTransaction("nested"),
        errors.StaleRow("stale"),
        errors.PoolExhausted("exhausted"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_library_can_be_pickled(error: Exception) -> None:
    for twin in (copy.copy(error), pickle_roundtrip(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_tracebacks_and_pickles_have_the_public_name_of_an_error() -> None:
    assert {getattr(errors, name).__module__ for name in errors.__all__} == {"howdah.errors"}


def test_not_found_has_all_keys_and_shows_a_few() -> None:
    error = errors.NotFound(User, range(7))
    assert error.keys == [0, 1, 2, 3, 4, 5, 6]
    assert str(error) == "no User with key 0, 1, 2, 3, 4 and 2 more"


def test_unknown_attribute_is_an_attribute_error_that_lists_the_attributes() -> None:
    assert isinstance(errors.UnknownAttribute(User, "mail", ["email"]), AttributeError)
    assert str(errors.UnknownAttribute(User, "mail", ["email", "name"])).endswith("it has email, name")


def driver_errors() -> list[Any]:
    """The driver's errors with a SQLSTATE."""
    classes: list[Any] = list(vars(asyncpg.exceptions).values())
    with_code: list[Any] = [c for c in classes if inspect.isclass(c) and issubclass(c, asyncpg.PostgresError)]
    return [each for each in with_code if each.sqlstate is not None]


CODES = sorted({each.sqlstate for each in driver_errors()})


def error_class(sqlstate: str) -> type[errors.DatabaseError]:
    return BY_SQLSTATE.get(sqlstate) or BY_SQLSTATE.get(sqlstate[:2]) or errors.DatabaseError


def decide(sqlstate: str) -> type[errors.HowdahError]:
    decided = {code: cls for cls, codes in DECISIONS.items() for code in codes.split()}
    return decided.get(sqlstate) or decided[sqlstate[:2]]


@pytest.mark.parametrize("sqlstate", CODES)
def test_every_code_of_the_driver_has_the_class_that_was_decided(sqlstate: str) -> None:
    assert sqlstate in BY_SQLSTATE or sqlstate[:2] in BY_SQLSTATE
    cls, decided = error_class(sqlstate), decide(sqlstate)
    assert issubclass(cls, decided)
    if decided is errors.DatabaseError:
        assert cls is decided
    assert issubclass(cls, errors.OutcomeUnknown) == (sqlstate in UNKNOWN_OUTCOME)
    status = next((HTTP_STATUS_BY_ERROR[each] for each in cls.__mro__ if each in HTTP_STATUS_BY_ERROR), 500)
    is_temporary = issubclass(cls, errors.Unavailable | errors.TransactionConflict | errors.ReadOnly)
    assert (status == 503) == is_temporary


def test_every_decision_is_for_a_code_that_exists() -> None:
    known = {*CODES, *(code[:2] for code in CODES)}
    assert {code for codes in DECISIONS.values() for code in codes.split()} <= known
    assert set(CODES) >= UNKNOWN_OUTCOME


def test_the_table_has_no_code_that_does_not_exist() -> None:
    known = {*CODES, *(code[:2] for code in CODES), "23001"}
    assert set(BY_SQLSTATE) <= known


def test_every_code_becomes_a_subclass_of_the_error_of_sqlalchemy() -> None:
    dbapi: Any = PGDialect_asyncpg.import_dbapi()  # type: ignore[no-untyped-call]
    for driver_error in driver_errors():
        if driver_error is asyncpg.InvalidCachedStatementError:
            continue  # it is translated by its class, not its code (see test_errors_statements.py)
        adapters = dbapi._asyncpg_error_translate
        adapted = next(adapters[each] for each in driver_error.__mro__ if each in adapters)
        known = (getattr(exc, each.__name__, None) for each in adapted.__mro__)
        theirs = next((each for each in known if each and issubclass(each, exc.DBAPIError)), exc.DBAPIError)
        assert issubclass(error_class(driver_error.sqlstate), theirs), driver_error.sqlstate


def test_the_tree_in_the_docstring_is_the_class_hierarchy() -> None:
    drawn: dict[str, str | None] = {"HowdahError": None}
    above = ["HowdahError"]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([│ ]*)[├└]── (\w+)", line)
        if found:
            depth = len(found[1]) // 4 + 1
            drawn[found[2]] = above[depth - 1]
            above[depth:] = [found[2]]
    classes = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, errors.HowdahError)]
    real = {each.__name__: each.__bases__[0].__name__ for each in classes}
    assert drawn == {**real, "HowdahError": None}


def test_the_codes_in_the_docstring_are_in_the_table() -> None:
    for line in (errors.__doc__ or "").splitlines():
        found = re.search(r"── (\w+) ", line)
        codes = re.findall(r"\b(?=\w*\d)[0-9A-Z]{5}\b", line)
        if found and codes:
            assert {error_class(code).__name__ for code in codes} == {found[1]}, line


def test_every_class_of_the_tree_is_public() -> None:
    classes = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, errors.HowdahError)]
    elsewhere = {"EmbeddedPostgresError", "MigrationBlocked"}  # exported by howdah.embedded and howdah.alembic
    assert {each.__name__ for each in classes} <= {*howdah.__all__, *elsewhere}
