"""`/users` over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from howdah import Database
from shop.users.repository import UserRepository
from shop_tests.support.factories import make_account, make_order, make_user, walk, walk_back
from shop_tests.support.problems import assert_problem


async def test_a_new_user_is_returned_with_its_location_and_etag(client: httpx.AsyncClient) -> None:
    response = await client.post("/users", json={"email": "Ada@Example.COM", "name": " Ada ", "country": "France"})

    assert response.status_code == 201
    user = response.json()
    assert response.headers["location"] == f"/users/{user['id']}"
    assert response.headers["etag"] == '"1"'
    assert UUID(user["id"]).version == 7
    assert (user["email"], user["name"], user["country"], user["version"]) == ("ada@example.com", "Ada", "France", 1)
    assert user["created_at"].endswith("Z")
    assert (await client.get(response.headers["location"])).json() == user | {"orders": []}


async def test_an_address_is_unique_in_upper_and_lower_case(client: httpx.AsyncClient) -> None:
    await make_user(client, email="ada@example.com")
    response = await client.post("/users", json={"email": "ADA@example.com", "name": "Another"})
    assert_problem(response, 409, "unique-violation", constraint="uq_users_email")
    assert "ada@example.com" not in response.text.lower()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"name": "Ada"}, id="no address"),
        pytest.param({"email": "ada@example.com"}, id="no name"),
        pytest.param({"email": "ada", "name": "Ada"}, id="an invalid address"),
        pytest.param({"email": "a" * 250 + "@example.com", "name": "Ada"}, id="an address too long"),
        pytest.param({"email": "ada@example.com", "name": " "}, id="a blank name"),
        pytest.param({"email": "ada@example.com", "name": "x" * 101}, id="a name too long"),
        pytest.param({"email": "ada@example.com", "name": "x\x00"}, id="a name with NUL"),
        pytest.param({"email": "ada@example.com", "name": "Ada", "country": "\x00"}, id="a country with NUL"),
        pytest.param({"email": "ada@example.com", "name": 1}, id="a name that is a number"),
        pytest.param({"email": "ada@example.com", "name": "Ada", "country": ""}, id="an empty country"),
        pytest.param({"email": "ada@example.com", "name": "Ada", "admin": True}, id="an extra field"),
        pytest.param({"email": "ada@example.com", "name": "Ada", "id": str(uuid4())}, id="an id"),
        pytest.param([], id="a list"),
        pytest.param(None, id="null"),
    ],
)
async def test_an_invalid_body_is_rejected(client: httpx.AsyncClient, body: Any) -> None:
    assert_problem(await client.post("/users", json=body), 422, "validation")


@pytest.mark.parametrize(
    ("method", "path"),
    [("PATCH", "/users/{}"), ("DELETE", "/users/{}")],
)
async def test_an_unknown_user_is_not_found_and_an_invalid_id_is_rejected(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    options: dict[str, Any] = {"json": {"name": "Ada"}, "headers": {"If-Match": '"1"'}} if method == "PATCH" else {}
    assert_problem(await client.request(method, path.format(uuid4()), **options), 404, "not-found")
    for invalid in ("1", "x" * 500, "%00", "%ff", "0" * 33):
        assert_problem(await client.request(method, path.format(invalid), **options), 422, "validation")


async def test_pages_have_every_user_once_forward_and_backward(client: httpx.AsyncClient) -> None:
    users = [await make_user(client) for _ in range(7)]
    assert await walk(client, "/users", limit=3) == [users[:3], users[3:6], users[6:]]
    assert await walk_back(client, "/users", limit=3) == [users[6:], users[3:6], users[:3]]


async def test_users_created_or_deleted_between_two_pages_move_no_other_user(client: httpx.AsyncClient) -> None:
    users = [await make_user(client) for _ in range(4)]
    first = (await client.get("/users", params={"limit": 2})).json()
    assert (await client.delete(f"/users/{users[1]['id']}")).status_code == 204
    late = await make_user(client)
    second = (await client.get("/users", params={"limit": 5, "after": first["next"]})).json()
    assert [user["id"] for user in second["items"]] == [users[2]["id"], users[3]["id"], late["id"]]


async def test_users_are_filtered_by_email_prefix_and_country(client: httpx.AsyncClient) -> None:
    ada = await make_user(client, email="ada@example.com", country="France")
    adam = await make_user(client, email="adam@example.com")
    odd = await make_user(client, email="a_d%x@example.com", country="France")
    slashed = await make_user(client, email="a/d@example.com")

    async def found(**filters: str) -> list[str]:
        return [user["id"] for user in (await client.get("/users", params=filters)).json()["items"]]

    assert await found(email_prefix="ADA") == [ada["id"], adam["id"]]
    assert await found(email_prefix="ada@") == [ada["id"]]
    assert await found(country="France") == [ada["id"], odd["id"]]
    assert await found(email_prefix="a", country="France") == [ada["id"], odd["id"]]
    assert await found(email_prefix="a_d") == [odd["id"]]
    assert await found(email_prefix="%") == []
    assert await found(email_prefix="a\\") == []
    assert await found(email_prefix="a/") == [slashed["id"]]
    assert await found(country="Spain") == []


async def test_users_are_filtered_by_the_time_of_their_creation(client: httpx.AsyncClient) -> None:
    users = [await make_user(client) for _ in range(4)]
    ids, times = [user["id"] for user in users], [user["created_at"] for user in users]

    async def found(**filters: str) -> list[str]:
        pages = await walk(client, "/users", limit=1, **filters)
        return [user["id"] for page in pages for user in page]

    assert await found(created_from=times[1]) == ids[1:]
    assert await found(created_before=times[1]) == ids[:1]
    assert await found(created_from=times[1], created_before=times[3]) == ids[1:3]
    assert await found(created_from="2999-01-01T00:00:00Z") == []


async def test_a_cursor_is_valid_only_for_its_list_query(client: httpx.AsyncClient) -> None:
    for country in ("France", "France", "Spain"):
        await make_user(client, country=country)
    cursor = (await client.get("/users", params={"limit": 1, "country": "France"})).json()["next"]
    for parameters in ({"after": cursor}, {"after": cursor, "country": "Spain"}, {"before": "nonsense"}):
        assert_problem(await client.get("/users", params=parameters), 400, "invalid-cursor")
    assert_problem(await client.get("/orders", params={"after": cursor}), 400, "invalid-cursor")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=1e2",
        "page=2",
        "after=x&before=y",
        "email_prefix=",
        "country=%00",
        "created_from=2026-01-01T00:00:00",
        "created_before=today",
    ],
)
async def test_an_invalid_query_is_rejected(client: httpx.AsyncClient, query: str) -> None:
    assert_problem(await client.get(f"/users?{query}"), 422, "validation")


async def test_a_change_sets_the_fields_of_the_body_and_returns_the_next_version(client: httpx.AsyncClient) -> None:
    user = await make_user(client, country="France")
    response = await client.patch(
        f"/users/{user['id']}", json={"email": "New@Example.com", "country": None}, headers={"If-Match": '"1"'}
    )
    assert response.status_code == 200
    assert response.headers["etag"] == '"2"'
    changed = response.json()
    assert (changed["email"], changed["country"], changed["name"]) == ("new@example.com", None, user["name"])
    assert changed["version"] == 2
    assert changed["updated_at"] > user["updated_at"]
    assert (await client.get(f"/users/{user['id']}")).json() == changed | {"orders": []}


@pytest.mark.parametrize("body", [{}, {"name": "Ada"}])
async def test_a_change_without_an_effect_keeps_the_version(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    user = await make_user(client, name="Ada")
    response = await client.patch(f"/users/{user['id']}", json=body, headers={"If-Match": '"1"'})
    assert response.status_code == 200
    assert response.headers["etag"] == '"1"'
    assert response.json() == user


@pytest.mark.parametrize(
    "body", [{"name": None}, {"email": None}, {"name": ""}, {"version": 7}, {"created_at": "2026-01-01T00:00:00Z"}, []]
)
async def test_an_invalid_change_is_rejected(client: httpx.AsyncClient, body: Any) -> None:
    user = await make_user(client)
    response = await client.patch(f"/users/{user['id']}", json=body, headers={"If-Match": '"1"'})
    assert_problem(response, 422, "validation")


async def test_a_change_to_a_used_address_is_rejected_and_changes_nothing(client: httpx.AsyncClient) -> None:
    taken, user = await make_user(client), await make_user(client)
    response = await client.patch(
        f"/users/{user['id']}", json={"email": taken["email"], "name": "Other"}, headers={"If-Match": "*"}
    )
    assert_problem(response, 409, "unique-violation", constraint="uq_users_email")
    assert (await client.get(f"/users/{user['id']}")).json() == user | {"orders": []}


@pytest.mark.parametrize("if_match", ["*", '"1"', '"7", "1"', '"1","2"'])
async def test_a_change_of_the_current_version_is_accepted(client: httpx.AsyncClient, if_match: str) -> None:
    user = await make_user(client)
    response = await client.patch(f"/users/{user['id']}", json={"name": "Grace"}, headers={"If-Match": if_match})
    assert response.status_code == 200


@pytest.mark.parametrize("if_match", ['"2"', 'W/"1"', "1", "", '""', '"0", W/"1"', "nonsense", '"1'])
async def test_a_change_of_another_version_is_rejected(client: httpx.AsyncClient, if_match: str) -> None:
    user = await make_user(client)
    response = await client.patch(f"/users/{user['id']}", json={"name": "Grace"}, headers={"If-Match": if_match})
    assert_problem(response, 412, "precondition-failed")
    response = await client.delete(f"/users/{user['id']}", headers={"If-Match": if_match})
    assert_problem(response, 412, "precondition-failed")
    assert (await client.get(f"/users/{user['id']}")).json() == user | {"orders": []}


async def test_a_change_without_if_match_is_rejected(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    response = await client.patch(f"/users/{user['id']}", json={"name": "Grace"})
    assert_problem(response, 428, "precondition-required")


async def test_one_of_ten_concurrent_changes_of_a_version_is_accepted(client: httpx.AsyncClient) -> None:
    user = await make_user(client)

    async def rename(number: int) -> httpx.Response:
        return await client.patch(f"/users/{user['id']}", json={"name": f"name {number}"}, headers={"If-Match": '"1"'})

    answers = await asyncio.gather(*(rename(number) for number in range(10)))

    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9
    kept = next(answer.json() for answer in answers if answer.status_code == 200)
    assert (await client.get(f"/users/{user['id']}")).json() == kept | {"orders": []}


async def test_without_the_precondition_the_later_change_undoes_the_earlier(
    client: httpx.AsyncClient, stored: Database
) -> None:
    """Control: two sessions read the same version, and then each writes all fields."""
    user_id = UUID((await make_user(client, name="Ada", country="France"))["id"])
    async with stored.session() as first, stored.session() as second:
        read = [await UserRepository(session).get_one(user_id) for session in (first, second)]
        seen = [(user.name, user.country) for user in read]
        await first.rollback()
        await second.rollback()
    for (name, country), change in zip(seen, ({"name": "Grace"}, {"country": "Spain"}), strict=True):
        async with stored.begin() as session:
            users = UserRepository(session)
            values: dict[str, Any] = {"name": name, "country": country} | change
            await users.update(await users.lock_one(user_id), **values)
    user = (await client.get(f"/users/{user_id}")).json()
    assert (user["name"], user["country"]) == ("Ada", "Spain")  # Grace is lost


async def test_a_user_without_orders_and_accounts_is_deleted(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    response = await client.delete(f"/users/{user['id']}", headers={"If-Match": '"1"'})
    assert (response.status_code, response.content) == (204, b"")
    assert_problem(await client.get(f"/users/{user['id']}"), 404, "not-found")


async def test_a_user_with_an_order_or_an_account_is_kept(client: httpx.AsyncClient) -> None:
    buyer, holder = await make_user(client), await make_user(client)
    await make_order(client, buyer["id"])
    await make_account(client, user_id=holder["id"])
    response = await client.delete(f"/users/{buyer['id']}")
    assert_problem(response, 409, "foreign-key-violation", constraint="fk_orders_user_id")
    response = await client.delete(f"/users/{holder['id']}")
    assert_problem(response, 409, "foreign-key-violation", constraint="fk_accounts_user_id")
    assert (await client.get(f"/users/{buyer['id']}")).status_code == 200
