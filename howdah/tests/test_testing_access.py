"""The matrix test finds each kind of gap, and has none for a correct application."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from howdah import Database
from howdah.testing import open_client
from howdah.testing.access import (
    EVERYONE,
    AccessMatrix,
    Case,
    Expectation,
    RequestData,
    disabled,
    expect,
    list_operations,
    list_rules,
)
from howdah_tests.support.access_app import READ, REMOVE, WRITE, Model, Parcel, create_access_app
from howdah_tests.support.principals import OPERATOR, WRONG, sign_in

EXPECTED = {
    "GET /parcels": expect(customer="own", operator="all", scope="parcels:read"),
    "GET /parcels/{parcel_id}": expect(customer="own", operator="all", scope="parcels:read"),
    "PATCH /parcels/{parcel_id}": expect(customer="own", operator="all", scope="parcels:write"),
    "DELETE /parcels/{parcel_id}": expect(operator="all"),
    "POST /sign-in": EVERYONE,
    "GET /page": expect(operator="all"),
    "WEBSOCKET /changes": expect(operator="all"),
}


class Service:
    """The parcels of the test, and the matrix."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.own = self.foreign = uuid4()

    async def create(self, owner: str) -> UUID:
        async with self.database.begin() as session:
            parcel = Parcel(owner=owner, content=f"of {owner}")
            session.add(parcel)
            await session.flush()
            return parcel.id

    def choose_key(self, case: Case) -> UUID:
        return {"own": self.own, "foreign": self.foreign}.get(case.kind or "", uuid4())

    async def delete(self, case: Case) -> RequestData:
        key = uuid4() if case.kind == "missing" else await self.create("a")
        return RequestData(path={"parcel_id": key})

    def list_parcels(self, case: Case) -> RequestData:
        return RequestData(own_marks=[str(self.own)], foreign_marks=[str(self.foreign)])

    async def find_gaps(
        self,
        *,
        faults: Collection[str] = (),
        expected: dict[str, Expectation] = EXPECTED,
        operations: Collection[str] | None = None,
        limits: Mapping[str, Any] = {},
        **options: Any,
    ) -> list[str]:
        app = create_access_app("postgresql+asyncpg://unused/unused", faults=faults)
        matrix = AccessMatrix(
            app,
            expected=expected,
            **{
                "valid": {"token": sign_in},
                "scoped": {"API key": lambda role, scopes: sign_in(role, "a", *scopes)},
                "invalid": {"expired token": lambda role: WRONG},
                "path_values": {"parcel_id": self.choose_key},
                "requests": {
                    "GET /parcels": self.list_parcels,
                    "PATCH /parcels/{parcel_id}": lambda case: RequestData(json={"content": "new"}),
                    "DELETE /parcels/{parcel_id}": self.delete,
                },
                "foreign_marks": ["of b"],
                **options,
            },
        )
        async with open_client(app, {"main": self.database}) as client:
            return await matrix.find_gaps(client, operations=operations, **limits)


@pytest.fixture
async def service(database: Database) -> Service:
    async with database.begin() as session:
        await (await session.connection()).run_sync(Model.metadata.create_all)
    service = Service(database)
    service.own, service.foreign = await service.create("a"), await service.create("b")
    return service


async def test_a_correct_application_has_no_gap(service: Service) -> None:
    assert await service.find_gaps() == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            "foreign is readable",
            "GET /parcels/{parcel_id} as customer with token, foreign object: expected 404, got 200 {",
        ),
        (
            "foreign is another error",
            "GET /parcels/{parcel_id} as customer with token: a foreign object can be told from a missing one: 404",
        ),
        ("lists have foreign rows", "GET /parcels as customer with token: the response has the text of b of a foreign"),
        ("lists are empty", "GET /parcels as customer with token: the response lacks "),
        ("sign-in has a rule", "POST /sign-in as customer with no credentials: expected success, got 401"),
        ("the page is public", "GET /page as customer with token: expected 403, got 200 page"),
        ("the websocket is public", "WEBSOCKET /changes as customer with no credentials: expected 401, got 101"),
        ("another route", "GET /other has no entry in `expected`: say who may call it"),
    ],
)
async def test_each_fault_of_an_application_is_a_gap(service: Service, fault: str, expected: str) -> None:
    operation = " ".join(expected.split()[:2])
    gaps = await service.find_gaps(faults={fault}, operations=None if operation not in EXPECTED else {operation})
    assert any(gap.startswith(expected) for gap in gaps), gaps


@pytest.mark.parametrize(
    ("operation", "entry", "expected"),
    [
        ("GET /gone", EVERYONE, "GET /gone is in `expected`, and the application has no such route: remove the entry"),
        ("GET /parcels", None, "GET /parcels has no entry in `expected`: say who may call it"),
        (
            "GET /parcels",
            expect(operator="all", scope="parcels:read"),
            "GET /parcels: `x-roles` of the OpenAPI description is ['customer', 'operator'], not ['operator']",
        ),
        (
            "GET /parcels",
            expect(customer="own", operator="all", scope="parcels:write"),
            "GET /parcels as customer with API key (parcels:write): expected success, got 403",
        ),
        ("GET /parcels", expect(customer="own", operator="all"), "GET /parcels as customer with API key (all scopes"),
        ("GET /parcels", EVERYONE, "GET /parcels as customer with no credentials: expected success, got 401"),
        ("POST /sign-in", expect(operator="all"), "POST /sign-in as customer with token: expected 403, got 200"),
        (
            "GET /parcels/{parcel_id}",
            expect(customer="all", operator="all", scope="parcels:read"),
            "GET /parcels/{parcel_id} as customer with token, foreign object: expected success, got 404",
        ),
    ],
)
async def test_each_difference_from_the_table_is_a_gap(
    service: Service, operation: str, entry: Expectation | None, expected: str
) -> None:
    table = {name: each for name, each in {**EXPECTED, operation: entry}.items() if each is not None}
    in_list = "expected," in expected or "`" in expected
    gaps = await service.find_gaps(expected=table, operations=None if in_list else {operation})
    assert any(gap.startswith(expected) for gap in gaps), gaps


async def test_an_api_key_needs_each_of_several_scopes(service: Service) -> None:
    operation, fault = "GET /parcels", "lists need a second scope"
    one = expect(customer="own", operator="all", scope="parcels:read")
    two = expect(customer="own", operator="all", scope="parcels:read", more_scopes=["labels:read"])
    limits = {"roles": ["operator"], "credentials": ["API key"]}

    async def find_gaps(entry: Expectation, *faults: str) -> list[str]:
        table = {**EXPECTED, operation: entry}
        return await service.find_gaps(expected=table, operations={operation}, faults=faults, limits=limits)

    assert await find_gaps(one) == []
    assert await find_gaps(two, fault) == []
    [gap] = await find_gaps(one, fault)
    assert gap.startswith("GET /parcels as operator with API key (parcels:read): expected success, got 403")
    [gap] = await find_gaps(two)
    assert gap.startswith("GET /parcels as operator with API key (all scopes but labels:read): expected 403, got 200")


async def test_credentials_are_made_again_after_a_request_that_ends_their_session(service: Service) -> None:
    made: list[str] = []

    def make_token(role: str) -> dict[str, str]:
        made.append(role)
        return sign_in(role)

    for ends_session, expected in ((False, 1), (True, 2)):
        made.clear()
        await service.find_gaps(
            operations={"POST /sign-in", "GET /page"},
            valid={"token": make_token},
            requests={"POST /sign-in": lambda case, ends=ends_session: RequestData(ends_session=ends)},
        )
        assert made.count(OPERATOR) == expected


async def test_the_requests_can_be_limited(service: Service) -> None:
    operations = {"GET /parcels", "GET /parcels/{parcel_id}"}
    with disabled(READ):
        every = await service.find_gaps(operations=operations)
        first = await service.find_gaps(operations=operations, limits={"first_only": True})
        limited = await service.find_gaps(
            operations=operations, limits={"roles": [OPERATOR], "credentials": ["API key"]}
        )
    cases, first_cases, limited_cases = ([gap.partition(":")[0] for gap in gaps] for gaps in (every, first, limited))
    assert first_cases == [next(case for case in cases if case.startswith(f"{each} as")) for each in sorted(operations)]
    assert limited_cases == [case for case in cases if " as operator with API key " in case]
    assert len(every) > len(limited) > len(first)


async def test_credentials_that_should_be_rejected_are_a_gap(service: Service) -> None:
    gaps = await service.find_gaps(invalid={"expired token": sign_in}, operations={"POST /sign-in"})
    assert "POST /sign-in as customer with expired token: expected 401, got 200 null" in gaps


@pytest.mark.parametrize("rule", [READ, WRITE, REMOVE], ids=["READ", "WRITE", "REMOVE"])
async def test_each_rule_that_is_disabled_is_a_gap(service: Service, rule: Any) -> None:
    operations = list_rules(create_access_app("postgresql+asyncpg://unused/unused"))[rule.dependency]
    with disabled(rule):
        gaps = await service.find_gaps(operations=operations)
    assert {gap.split(" as ")[0] for gap in gaps} == {*operations}
    assert await service.find_gaps(operations=operations) == []  # the control


async def test_rules_and_operations_are_listed() -> None:
    app = create_access_app("postgresql+asyncpg://unused/unused")
    assert list_rules(app) == {
        READ.dependency: ["GET /parcels", "GET /parcels/{parcel_id}"],
        WRITE.dependency: ["PATCH /parcels/{parcel_id}"],
        REMOVE.dependency: ["DELETE /parcels/{parcel_id}", "GET /page", "WEBSOCKET /changes"],
    }
    operations = list_operations(app)
    assert operations.keys() == EXPECTED.keys()
    assert operations["GET /page"] is None


async def test_a_path_parameter_without_a_value_is_an_error(service: Service) -> None:
    with pytest.raises(LookupError, match="add parcel_id to path_values"):
        await service.find_gaps(path_values={})


async def test_the_failure_lists_the_gaps(service: Service) -> None:
    app = create_access_app("postgresql+asyncpg://unused/unused")
    matrix = AccessMatrix(app, expected={}, valid={"token": sign_in}, roles=[OPERATOR])
    async with httpx.AsyncClient() as client:
        with pytest.raises(pytest.fail.Exception) as caught:
            await matrix.check(client)
    message = str(caught.value)
    assert message.startswith("the access matrix has 7 gaps:\n- ")
    assert "\n- GET /page has no entry in `expected`" in message
