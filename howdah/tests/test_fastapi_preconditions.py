"""`If-Match` and `If-None-Match`: `IfMatch`, `RequiredIfMatch`, `IfNoneMatch` and their `check`."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Response

from howdah.fastapi import (
    NOT_MODIFIED,
    IfMatch,
    IfNoneMatch,
    Precondition,
    PreconditionFailed,
    PreconditionRequired,
    RequiredIfMatch,
    make_etag,
)
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app


def create_app() -> Any:
    app = create_bare_app()

    @app.patch("/", responses=NOT_MODIFIED)
    async def change(if_match: RequiredIfMatch, response: Response) -> None:
        if_match.check(1)
        response.headers["ETag"] = make_etag(2)

    @app.get("/", responses=NOT_MODIFIED)
    async def read(if_none_match: IfNoneMatch) -> dict[str, int]:
        if_none_match.check(make_etag(7, 3))
        return {"version": 7}

    @app.delete("/")
    async def delete(if_match: IfMatch) -> None:
        if_match.check(1)

    return app


@pytest.mark.parametrize(("versions", "etag"), [((1,), '"1"'), ((7, 12), '"7-12"')])
def test_an_etag_consists_of_the_versions(versions: tuple[int, ...], etag: str) -> None:
    assert make_etag(*versions) == etag


@pytest.mark.parametrize("if_match", [None, "*", " * ", '"1"', '"1-5"', '"7", "1"', '"1","2"', '"0-1", "1-9"'])
def test_the_current_version_and_a_missing_header_are_accepted(if_match: str | None) -> None:
    Precondition(if_match, required=False).check(1)


def test_a_missing_header_is_rejected_if_it_is_required() -> None:
    with pytest.raises(PreconditionRequired):
        Precondition(None, required=True).check(1)


@pytest.mark.parametrize("if_match", ["", "1", '"1', '1"', '""', '"2"', '"11"', 'W/"1"', '"2-1"', '"1-', "*, *"])
def test_another_version_is_rejected(if_match: str) -> None:
    with pytest.raises(PreconditionFailed):
        Precondition(if_match, required=True).check(1)


async def test_a_change_of_the_current_version_is_accepted() -> None:
    async with asgi_client(create_app()) as client:
        answer = await client.patch("/", headers={"If-Match": '"1"'})
        assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
        assert (await client.delete("/")).status_code == 200


async def test_several_headers_are_one_list() -> None:
    async with asgi_client(create_app()) as client:
        answer = await client.patch("/", headers=[("If-Match", '"9"'), ("If-Match", '"1"')])
    assert answer.status_code == 200


async def test_a_change_without_the_header_is_a_428_and_of_another_version_a_412() -> None:
    async with asgi_client(create_app()) as client:
        missing = await client.patch("/")
        assert (missing.status_code, missing.json()["type"]) == (428, "urn:howdah:problem:precondition-required")
        for method in ("PATCH", "DELETE"):
            stale = await client.request(method, "/", headers={"If-Match": '"2"'})
            assert (stale.status_code, stale.json()["type"]) == (412, "urn:howdah:problem:precondition-failed")


def test_the_header_and_its_problems_are_described() -> None:
    description = create_app().openapi()["paths"]["/"]
    assert list(description["patch"]["responses"]) == ["200", "304", "412", "422", "428"]
    assert list(description["delete"]["responses"]) == ["200", "412", "422"]
    assert list(description["get"]["responses"]) == ["200", "304", "422"]
    headers = (("patch", "If-Match", True), ("delete", "If-Match", False), ("get", "If-None-Match", False))
    for method, name, is_required in headers:
        [parameter] = description[method]["parameters"]
        assert (parameter["name"], parameter["in"], parameter["required"]) == (name, "header", is_required)


@pytest.mark.parametrize(
    ("if_none_match", "status"),
    [
        ([], 200),
        (['"7"'], 200),
        (['"7-4"'], 200),
        (["7-3"], 200),
        (['"7-3"'], 304),
        (['W/"7-3"'], 304),
        (['"1", "7-3"'], 304),
        (['"1"', '"7-3"'], 304),
        (["*"], 304),
    ],
)
async def test_a_response_that_the_client_has_is_not_sent_again(if_none_match: list[str], status: int) -> None:
    async with asgi_client(create_app()) as client:
        response = await client.get("/", headers=[("If-None-Match", each) for each in if_none_match])
    assert (response.status_code, response.headers["etag"]) == (status, '"7-3"')
    assert response.content == (b"" if status == 304 else b'{"version":7}')
