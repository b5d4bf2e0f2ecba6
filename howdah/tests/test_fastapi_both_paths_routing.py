"""A direct route and FastAPI's router find the same route, for any path and method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from howdah_tests.support.path_pairs import Mark, PathPair, open_pair, request
from howdah_tests.support.path_routes import create_path_app

UNREACHABLE: Final = "postgresql+asyncpg://nobody@127.0.0.1:1/none"

# Segments of declared paths, and those that a router may read in another way. They are percent-encoded.
SEGMENTS: Final = (
    *("orders", "export", "late", "a", "b", "c", "mixed", "parts", "files", "unmarked", "fixed", "marked", "slash"),
    *("one", "two", "inner", "mounted", "dot.s", "dotxs", "%C3%A9", "only-post", "1", "x.json", "healthz"),
    *("", ".", "..", "%2e%2e", "%2F", "a%2Fb", "%0A", "export%0A", "%0Aexport", "%00", "%25", "%7Bname%7D", "%3F"),
    *("%FF", "export%0D", "export%20", "export;a=b", "%E2%80%A8", "c%E2%80%A8", "~", "EXPORT", "c%0A", "c%0B"),
)
TARGETS: Final = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=5).map(lambda parts: "/" + "/".join(parts))
METHODS: Final = st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS"])

KNOWN: Final = (
    *("/orders/export", "/orders/export%0A", "/orders/x", "/orders/", "/orders", "/orders//", "/orders//export"),
    *("/late/export", "/late/export%0A", "/late/only-post", "/a/b/c", "/a/b/c%0A", "/a/x/c", "/a/x/c%0A", "/a/b/x"),
    *("/mixed/1", "/mixed/1%0A", "/mixed/a", "/parts/a.json", "/parts/a.json%0A", "/parts/a", "/files/a", "/files/a/b"),
    *("/unmarked/fixed", "/marked/x", "/slash", "/slash/", "/slash/%0A", "/dot.s/a", "/dotxs/a", "/%C3%A9/a"),
    *("/mounted", "/mounted/", "/mounted/orders/export", "/mounted/orders/x%0A", "/mounted/mounted/orders/x"),
    *("/mountedorders/x", "//orders/x", "/./orders/x", "/orders/../late/x", "/orders/%2e%2e/late/x", "*"),
    *("http://test/orders/x", "http://evil/orders/x", "/orders/x#y", "/orders/x;y", "/orders/x%3Fy", "/orders%2Fx"),
)


def create(mark: Mark, **options: str) -> FastAPI:
    return create_path_app(mark, UNREACHABLE, mounted=True, metrics=False, load_limit=None, **options)


@pytest.fixture(scope="module")
def pair() -> Iterator[PathPair]:
    with open_pair(create) as pair:
        yield pair


def find_difference(pair: PathPair, raw: bytes) -> object:
    """What is different, apart from which of them FastAPI's router has served."""
    difference = pair.find_difference(raw)
    return None if isinstance(difference, dict) and difference.keys() == {"routed"} else difference


def test_unusual_paths_have_the_same_route(pair: PathPair) -> None:
    targets = [(method, target) for target in KNOWN for method in ("GET", "HEAD", "POST", "DELETE")]
    raws = [request(method, target, "Authorization: Bearer operator-ann") for method, target in targets]
    assert {raw: found for raw in raws if (found := find_difference(pair, raw))} == {}


@settings(max_examples=150, deadline=None)
@given(METHODS, TARGETS)
def test_any_path_has_the_same_route(pair: PathPair, method: str, target: str) -> None:
    assert find_difference(pair, request(method, target, "Authorization: Bearer operator-ann")) is None


QUERIES: Final = st.lists(
    st.tuples(
        st.sampled_from(["q", "flags", "kind", "need-ed", "needed", "%71", "q%00", "flags[]", "", "number"]),
        st.sampled_from(["", "1", "a", "b", "%00", "%ff", "+1", " 1", "1_0", "%E2%80%A8", "%0A", "x" * 20, "=", "1;2"]),
    ),
    max_size=4,
).map(lambda pairs: "&".join(f"{name}={value}".replace(" ", "%20") for name, value in pairs))


@settings(max_examples=80, deadline=None)
@given(QUERIES, st.sampled_from(["1", "-1", "a", "%31", "1%20", "0x1"]))
def test_any_query_is_read_in_the_same_way(pair: PathPair, query: str, number: str) -> None:
    assert pair.find_difference(request("GET", f"/values/{number}?{query}")) is None
