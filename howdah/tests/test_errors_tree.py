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
from howdah_tests.support.pickling import pickle_roundtrip
from howdah_tests.support.sample_models import User

# The codes that are mapped to DatabaseError itself: codes for SQL features that PostgreSQL itself never
# raises, faults of the program rather than of a request, and faults for an operator (disk full).
UNMAPPED = """
    03000 09000 0B000 0F000 0F001 0L000 0LP01 0P000 0Z000 0Z002 10608 20000 21000 24000 25000 25001 25002 25003 25004
    25005 25007 25008 25P01 25P02 27000 2B000 2BP01 2D000 2F000 2F002 2F003 2F004 2F005 34000 38000 38001 38002
    38003 38004 39000 39001 39004 39P01 39P02 39P03 3B000 3B001 40000 40002 40003 53000 53100 53200 53400 54000 54001
    54011 54023 55000 55006 55P02 55P04 57000 58000 58030 58P01 58P02 58P03 72000 F0000 F0001 P0000 P0001 P0002 P0003
    P0004
"""


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


def test_not_found_has_all_keys_and_shows_a_few() -> None:
    error = errors.NotFound(User, range(7))
    assert error.keys == [0, 1, 2, 3, 4, 5, 6]
    assert str(error) == "no User with key 0, 1, 2, 3, 4 and 2 more"


def test_unknown_attribute_is_an_attribute_error_that_lists_the_attributes() -> None:
    assert isinstance(errors.UnknownAttribute(User, "mail", ["email"]), AttributeError)
    assert str(errors.UnknownAttribute(User, "mail", ["email", "name"])).endswith("it has email, name")


def driver_errors() -> list[Any]:
    """The driver's errors with a SQLSTATE, without the errors of foreign data wrappers (class HV)."""
    classes: list[Any] = list(vars(asyncpg.exceptions).values())
    with_code: list[Any] = [c for c in classes if inspect.isclass(c) and issubclass(c, asyncpg.PostgresError)]
    return [each for each in with_code if each.sqlstate is not None and not each.sqlstate.startswith("HV")]


def error_class(sqlstate: str) -> type[errors.DatabaseError]:
    return BY_SQLSTATE.get(sqlstate) or BY_SQLSTATE.get(sqlstate[:2]) or errors.DatabaseError


def test_every_code_of_the_driver_is_mapped_or_listed_as_unmapped() -> None:
    unmapped = {each.sqlstate for each in driver_errors() if error_class(each.sqlstate) is errors.DatabaseError}
    assert unmapped == set(UNMAPPED.split())


def test_the_table_has_no_code_that_does_not_exist() -> None:
    known = {each.sqlstate for each in driver_errors()}
    assert {code for code in BY_SQLSTATE if len(code) == 5} <= known
    assert {code for code in BY_SQLSTATE if len(code) == 2} <= {code[:2] for code in known}


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
            table = {code for code, cls in BY_SQLSTATE.items() if cls.__name__ == found[1]}
            assert set(codes) <= table, line


def test_every_class_of_the_tree_is_public() -> None:
    classes = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, errors.HowdahError)]
    elsewhere = {"EmbeddedPostgresError", "MigrationBlocked"}  # exported by howdah.embedded and howdah.alembic
    assert {each.__name__ for each in classes} <= {*howdah.__all__, *elsewhere}
