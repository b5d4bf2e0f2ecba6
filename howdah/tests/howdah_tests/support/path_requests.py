"""The requests that are sent to both applications of a pair. Most of them have a direct route."""

from __future__ import annotations

from typing import Final

from howdah_tests.support.path_app import MAX_BODY
from howdah_tests.support.path_errors import ERRORS
from howdah_tests.support.path_outputs import JSON
from howdah_tests.support.path_pairs import ServedBy, json_request, request

CHUNKED: Final = "Transfer-Encoding: chunked"
NDJSON: Final = "Content-Type: application/x-ndjson"
NOTE: Final = "00000000-0000-0000-0000-000000000001"
LONG: Final = "x" * 3_000


def get(target: str, *headers: str) -> bytes:
    return request("GET", target, *headers)


def post(target: str, body: bytes, *headers: str) -> bytes:
    return json_request("POST", target, body, *headers)


def get_each(*targets: str) -> list[bytes]:
    return [get(each) for each in targets]


def post_each(target: str, *bodies: bytes) -> list[bytes]:
    return [post(target, each) for each in bodies]


def post_in_chunks(target: str, *chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return request("POST", target, "Content-Type: application/json", CHUNKED) + body


ITEM: Final = b'{"name": "a"}'

REQUESTS: Final[dict[str, list[bytes]]] = {
    "parameters": [
        get("/values/1"),
        get("/values/1"),  # a default that the first request has changed
        get("/values/1?q=five5&flags=3&flags=4&kind=b&need-ed=x", "X-Text: 12345", "Cookie: crumb=5"),
        get("/values/1?flags=&flags=a&kind=c&q=sixsix", "X-Text: 123456", "Cookie: crumb=a"),
        *get_each("/values/-1", "/values/a", "/values/1.0", "/values/%20%201", "/values/" + "9" * 5_000),
        get("/values/1?q=1&q=2", "X-Text: a", "X-Text: b", "X-Many: a", "X-Many: b, c"),
        get("/values/1?unknown=1&q", "Cookie: crumb=1; crumb=2; other=3"),
        get("/values/1?q=%00%ff&needed=no", "X-Text: caf\xe9"),
        *get_each("/values/1?q=a;kind=b&flags=1_0&flags=+1&flags=1e1", f"/values/1?q={LONG}", "/required"),
        get("/required?first=1&second=yes", "X-Needed: a", "Cookie: one=00000000-0000-0000-0000-000000000001"),
        get("/required?first=&second=", "X-Needed:", "Cookie: one="),
        *get_each(
            "/page",
            "/page?limit=5&names=a&names=b&after=00000000-0000-0000-0000-000000000001",
            "/page?limit=0&after=x&unknown=1",
            "/page?limit=1&limit=2",
        ),
        get("/page?" + "&".join(f"a{number}=1" for number in range(50))),
        get("/single", "X-Key: a"),
        get("/single"),
        get("/single", "X-Key: a", "X-Key: b"),
        get("/tenants/a/b"),
        get("/without-tenant"),
        get("/scope/a?b=c", "Authorization: Bearer customer-ann"),
        get("/outside/a?limit=7"),
        get("/outside/a?limit=b"),
    ],
    "bodies": [
        *post_each(
            "/items",
            ITEM,
            b'{"name": "a", "count": 3, "price": 1.5, "tags": ["x"]}',
            b'{"name": "a", "unknown": 1, "count": -1, "price": "b", "tags": {}}',
            b'{"name": "01234567890"}',
            b"{}",
            b"",
            b" ",
            b"null",
            b"[]",
            b'"a"',
            b"not json",
            b'{"name": "a"',
            b'{"name": "a"} x',
            b"\xef\xbb\xbf" + ITEM,
            b'\xff\xfe{\x00"\x00',
            b'{"name": "\xff"}',
            b'{"name": "\\ud800"}',
            b'{"name": "a", "name": "b"}',
            b'{"name": "a", "price": NaN}',
            b'{"name": "a", "price": 1e999}',
            b'{"name": "a", "price": -Infinity}',
            b'{"name": "a", "count": ' + b"9" * 1_000 + b"}",
            b"[" * 1_990,
            b'{"name": "' + b"x" * MAX_BODY + b'"}',
        ),
        request("POST", "/items", body=ITEM),
        request("POST", "/items", "Content-Type: text/plain", body=ITEM),
        request("POST", "/items", "Content-Type: application/json; charset=latin-1", body=ITEM),
        request("POST", "/items", "Content-Type: APPLICATION/JSON", body=ITEM),
        request("POST", "/items", "Content-Type: application/problem+json", body=ITEM),
        request("POST", "/items", "Content-Type: application/json+x", body=ITEM),
        request("POST", "/items", "Content-Type: application", body=ITEM),
        request("POST", "/items", "Content-Type: text/json", "Content-Type: application/json", body=ITEM),
        request("POST", "/items", "Content-Type: application/json", "Content-Type: text/plain", body=ITEM),
        request("POST", "/items", "Content-Type: application/x-www-form-urlencoded", body=b"name=a"),
        request("POST", "/items", 'Content-Type: application/json; a="b', body=ITEM),
        request("POST", "/items"),
        post_in_chunks("/items", ITEM[:5], ITEM[5:]),
        post_in_chunks("/items"),
        post_in_chunks("/items", b"{" + b" " * MAX_BODY, b"}"),
        post("/pairs?q=1", b'{"first": {"name": "a"}, "second": 2, "third": "c"}'),
        post("/pairs?q=b", b'{"first": {"name": 5}, "second": "x"}'),
        post("/pairs", b"[]"),
        post("/pairs", b""),
        post("/embedded", b'{"item": {"name": "a"}}'),
        post("/embedded", ITEM),
        post("/optional", b""),
        post("/optional", b"null"),
        post("/optional", ITEM),
        request("POST", "/optional"),
        post("/any", b"[1, 2.50, null]"),
        request("POST", "/any", "Content-Type: text/plain", body=b"caf\xc3\xa9"),
        request("POST", "/text", "Content-Type: text/plain", body=b"abc"),
        post("/text", b'"abc"'),
        request("POST", "/raw", body=b"x" * 100),
        request("POST", "/raw", body=b"x" * (MAX_BODY + 1)),
        request("POST", "/unread", body=b"x" * (MAX_BODY + 1)),
        request("POST", "/rows", NDJSON, body=ITEM + b"\n" + ITEM),
        request("POST", "/rows", NDJSON, body=ITEM + b'\n{"name": 5}'),
        request("POST", "/rows", body=ITEM),
    ],
    "strict bodies": [
        post("/strict/items", ITEM),
        post("/strict/items?note=a&many=1&many=2", ITEM),
        post("/strict/items?note=a&note=b", ITEM),
        post("/strict/items?unknown=a&unknown=b&many=x", b"not json"),
        *post_each(
            "/strict/items",
            b'{"name": "a", "name": "b"}',
            b'{"name": "a", "tags": [{"b": 1, "\\u0062": 2}]}',
            b'{"name": "a", "price": NaN}',
            b'{"name": "a", "price": 1e999}',
            b'{"name": "\\ud800"}',
            b'{"name": "\xff"}',
            b"\xef\xbb\xbf" + ITEM,
            b"[" * 1_990,
            b'{"count": ' + b"9" * 1_900 + b"}",
            b"not json",
            b"",
            b"x" * (MAX_BODY + 1),
        ),
        request("POST", "/strict/items", "Content-Type: text/plain", body=ITEM),
    ],
    "responses": [
        get("/json"),
        get("/json", f"If-None-Match: {JSON.etag}"),
        get("/json", f"If-None-Match: W/{JSON.etag}"),
        get("/json", f'If-None-Match: "other", {JSON.etag}'),
        get("/json", 'If-None-Match: "other"', f"If-None-Match: {JSON.etag}"),
        get("/json", "If-None-Match: *"),
        get("/json", 'If-None-Match: "other"'),
        get("/json", f"If-None-Match: {JSON.etag[1:-1]}"),
        *(get(f"/changed/{status}") for status in (200, 202, 299, 404, 503)),
        get("/changed-by-dependency"),
        get("/own-response"),
        request("DELETE", "/nothing"),
        *get_each(
            "/none",
            "/shouting",
            "/untyped",
            "/redirect",
            "/excluded",
            "/invalid-response",
            "/nan",
            "/stream",
            "/background/a",
        ),
        request("PUT", "/methods"),
        request("PATCH", "/methods"),
        request("OPTIONS", "/several"),
        request("POST", "/several"),
        request("HEAD", "/only-head"),
    ],
    "head": [
        request("HEAD", target)
        for target in (
            *("/json", "/values/1", "/values/a", "/changed/202", "/stream", "/errors/not-found", "/errors/unexpected"),
            *("/invalid-response", "/background/a", "/commits", "/orders/export", "/one/inner/a"),
        )
    ]
    + [request("HEAD", "/json", f"If-None-Match: {JSON.etag}")],
    "errors": [get(f"/errors/{name}") for name in ERRORS],
    "errors after the response": [get(f"/background/{name}") for name in ("not-found", "teapot", "unexpected")]
    + [get("/stream?broken=yes")],
    "rules": [
        post("/customers", ITEM, "Authorization: Bearer customer-ann"),
        post("/customers", b"not json", "Authorization: Bearer customer-ann"),
        post("/customers", b"not json"),
        post("/customers", b"not json", "Authorization: Bearer operator-ann"),
        post("/customers", b"x" * (MAX_BODY + 1), "Authorization: Bearer operator-ann"),
        post("/customers", ITEM, "Authorization: Bearer customer-ann items:read"),
        post("/customers", ITEM, "Authorization: Bearer customer-ann items:write"),
        get("/operators/1", "Authorization: Bearer operator-ann"),
        get("/operators/a", "Authorization: Bearer operator-ann"),
        get("/operators/1", "Authorization: Bearer operator-ann items:read"),
        get("/operators/a", "Authorization: Bearer customer-ann"),
        get("/operators/a"),
        get("/as-parameter?number=a", "Authorization: Bearer customer-ann"),
        get("/as-parameter?number=a", "Authorization: Bearer operator-ann"),
        get("/as-parameter?number=1", "Authorization: Bearer operator-ann"),
        request("HEAD", "/operators/1", "Authorization: Bearer customer-ann"),
    ],
    "sessions": [
        post("/commits/a", b""),
        post("/commits/late", b""),
        post("/commits/conflict", b""),
        post("/commits/teapot", b""),
        post("/commits/unexpected", b""),
        get("/commits"),
        get("/write-in-read-session"),
        *(
            get(f"/yields/{name}")
            for name in (
                *("a", "teapot", "unexpected", "a?before=teapot", "a?before=unexpected", "a?after=teapot"),
                *("a?after=unexpected", "unexpected?translated=again"),
                *("a?late=teapot", "a?late=unexpected", "teapot?after=unexpected", "unexpected?late=teapot"),
            )
        ),
    ],
    "exports and views": [
        *get_each(
            "/exports/3",
            "/exports/3?format=csv",
            "/exports/3?format=xml",
            "/exports/0",
            "/exports/3000",
            "/exports/3000?format=csv",
        ),
        request("HEAD", "/exports/3000"),
        *get_each(
            "/own-stream",
            "/views",
            "/views?limit=2",
            "/views?limit=0",
            "/views?after=x",
            f"/views/{NOTE}",
            "/views/00000000-0000-0000-0000-000000000099",
            "/views/x",
        ),
        request("HEAD", f"/views/{NOTE}", 'If-None-Match: "x"'),
    ],
    "idempotent routes": [
        post("/notes", ITEM, "Idempotency-Key: k", "X-Caller: ann"),
        post("/notes", ITEM, "Idempotency-Key: k", "X-Caller: ann"),
        post("/notes", b'{"name": "b"}', "Idempotency-Key: k", "X-Caller: ann"),
        post("/notes", ITEM, "Idempotency-Key: k", "X-Caller: bob"),
        post("/notes", ITEM, "X-Caller: ann"),
        post("/notes", ITEM, "Idempotency-Key: k", "Idempotency-Key: l"),
        post("/notes", ITEM, "Idempotency-Key: a b"),
        post("/notes", ITEM, "Idempotency-Key:"),
        post("/notes", b"not json", "Idempotency-Key: m"),
        post("/notes", ITEM, "Idempotency-Key: m"),
        post("/notes?a=1", ITEM, "Idempotency-Key: m"),
        *(
            post("/notes/failing", b'{"name": "%b"}' % name, f"Idempotency-Key: {name.decode()}")
            for name in (b"409", b"503", b"teapot", b"unexpected", b"unexpected", b"409", b"503")
        ),
        get("/commits"),
    ],
    "included routers": [
        get("/one/inner/a", "X-Key: a"),
        get("/one/inner/a"),
        get("/two/b/inner/a", "Authorization: Bearer operator-ann"),
        get("/two/b/inner/a?limit=11", "Authorization: Bearer operator-ann"),
        get("/two/b/inner/a?limit=11", "Authorization: Bearer customer-ann"),
        get("/two/b/inner/a"),
    ],
}


# Requests that have no direct route, and the part of the application that answers them.
OTHERS: Final[dict[bytes, ServedBy]] = {
    get("/unknown"): "fastapi",
    get("/mounted/json"): "fastapi",
    get("/mounted/unknown"): "fastapi",
    get("/of/acme/scope/a"): "fastapi",
    get("/of/acme/outside/a"): "fastapi",
    get("/of/acme/operators/1"): "fastapi",
    request("POST", "/of/acme/json"): "fastapi",
    get("/mounted/metrics"): "fastapi",
    get("/mounted/docs"): "fastapi",
    get("/values/1%0A"): "fastapi",
    get("/json/"): "fastapi",
    get("//json"): "fastapi",
    get("/"): "fastapi",
    request("POST", "/values/1"): "fastapi",
    request("OPTIONS", "/values/1"): "fastapi",
    request("OPTIONS", "/json"): "fastapi",
    request("DELETE", "/several"): "layers",
    request("POST", "/json"): "layers",
    request("HEAD", "/items"): "layers",
    request("TRACE", "/values/1"): "fastapi",
    request("GET", "/json", host="evil"): "layers",
    request("GET", "/json", "Authorization: Bearer wrong-a"): "layers",
    request("GET", "/json", "X-Authenticate: hang"): "layers",
    request("GET", "/json", "X-Authenticate: unavailable"): "layers",
    request("GET", "/json", "X-Authenticate: problem"): "layers",
    request("GET", "/json", "X-Authenticate: fault"): "layers",
    request("GET", "/healthz"): "fastapi",
    request("HEAD", "/readyz"): "fastapi",
    request("GET", "/openapi.json"): "fastapi",
}


# Segments of declared paths, and those that a router may read in another way. They are percent-encoded.
SEGMENTS: Final = (
    *("orders", "export", "late", "a", "b", "c", "mixed", "parts", "files", "unmarked", "fixed", "marked", "slash"),
    *("one", "two", "inner", "mounted", "dot.s", "dotxs", "%C3%A9", "only-post", "1", "x.json", "healthz"),
    *("", ".", "..", "%2e%2e", "%2F", "a%2Fb", "%0A", "export%0A", "%0Aexport", "%00", "%25", "%7Bname%7D", "%3F"),
    *("%FF", "export%0D", "export%20", "export;a=b", "%E2%80%A8", "c%E2%80%A8", "~", "EXPORT", "c%0A", "c%0B"),
)
KNOWN_TARGETS: Final = (
    *("/orders/export", "/orders/export%0A", "/orders/x", "/orders/", "/orders", "/orders//", "/orders//export"),
    *("/late/export", "/late/export%0A", "/late/only-post", "/a/b/c", "/a/b/c%0A", "/a/x/c", "/a/x/c%0A", "/a/b/x"),
    *("/mixed/1", "/mixed/1%0A", "/mixed/a", "/parts/a.json", "/parts/a.json%0A", "/parts/a", "/files/a", "/files/a/b"),
    *("/unmarked/fixed", "/marked/x", "/slash", "/slash/", "/slash/%0A", "/dot.s/a", "/dotxs/a", "/%C3%A9/a"),
    *("/mounted", "/mounted/", "/mounted/orders/export", "/mounted/orders/x%0A", "/mounted/mounted/orders/x"),
    *("/mountedorders/x", "//orders/x", "/./orders/x", "/orders/../late/x", "/orders/%2e%2e/late/x", "*"),
    *("http://test/orders/x", "http://evil/orders/x", "/orders/x#y", "/orders/x;y", "/orders/x%3Fy", "/orders%2Fx"),
)


ROOTED_TARGETS: Final = (
    *("/api", "/api/", "/api/api", "/api%0A", "/api/api%0A", "/api/orders/x", "/orders/x", "/apiorders/x"),
    *("/api/api/orders/x", "/api/mounted/orders/x", "/mounted/orders/x", "/api/outside/x", "//api/orders/x"),
    *("/API/orders/x", "/api//orders/x", "/api%2Forders/x"),
)

# Requests whose body ends too early.
INCOMPLETE: Final = (
    post("/items", ITEM)[:-3],
    post("/strict/items", ITEM)[:-3],
    post("/raw", ITEM)[:-3],
    request("POST", "/items", "Content-Type: application/json", CHUNKED) + b"1\r\nx",
)
