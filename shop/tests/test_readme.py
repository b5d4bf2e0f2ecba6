"""The README's request has the response that it shows."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx

README = Path(__file__).parents[2] / "README.md"

# Ids and times differ in each run.
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def mask(value: Any) -> str:
    return _TIME.sub("<time>", _UUID.sub("<uuid>", json.dumps(value, indent=2)))


def requests_and_responses() -> list[tuple[list[str], Any]]:
    console = "\n".join(re.findall(r"^```console\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE))
    found = re.findall(r"^\$ (curl .*?)\n(\{.*?^\})", console, re.DOTALL | re.MULTILINE)
    return [(shlex.split(command), json.loads(body)) for command, body in found]


async def test_the_readmes_request_has_the_response_that_it_shows(client: httpx.AsyncClient) -> None:
    shown = requests_and_responses()
    assert len(shown) == 1
    for command, shown_body in shown:
        assert command[:3] == ["curl", "-s", "-X"]
        method, url, _, header, _, body = command[3:]
        path = url.removeprefix("localhost:8000")
        name, value = header.split(": ")
        response = await client.request(method, path, headers={name: value}, content=body)
        assert mask(response.json()) == mask(shown_body)
