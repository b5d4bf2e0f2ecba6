"""People who sign up and sign in over HTTP, and the mails that they get."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import httpx

from howdah import Database
from shop.identity.bootstrap import create_admin
from shop.identity.mail import Mail
from shop_tests.support.waiting import until

PASSWORD: Final = "kettle-drum-harbour-moss"
OTHER_PASSWORD: Final = "violet-engine-pepper-lake"

_numbers = count(1)


@dataclass
class Mailbox:
    """A `Mailer` that keeps the mails."""

    mails: list[Mail] = field(default_factory=list)

    async def send(self, mail: Mail) -> None:
        self.mails.append(mail)

    async def wait_for(self, to: str, *, number: int = 1) -> Mail:
        """The last mail to this address, as soon as it has got this number of mails."""

        async def has_arrived() -> bool:
            return len(self.to(to)) >= number

        await until(has_arrived)
        return self.to(to)[-1]

    async def token_for(self, to: str, *, number: int = 1) -> str:
        """The token in the last mail to this address."""
        found = re.search(r"^token: (\S+)$", (await self.wait_for(to, number=number)).text, re.MULTILINE)
        assert found is not None
        return found[1]

    def to(self, address: str) -> list[Mail]:
        return [mail for mail in self.mails if mail.to == address]


def new_address() -> str:
    return f"person{next(_numbers)}@example.com"


def bearer(tokens: dict[str, Any]) -> dict[str, str]:
    """The header of somebody who has got these tokens."""
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def post(client: httpx.AsyncClient, path: str, *, headers: dict[str, str] | None = None, **body: Any) -> Any:
    """The answer to a successful POST."""
    response = await client.post(path, json=body, headers=headers)
    assert response.is_success, response.text
    return response.json() if response.content else None


async def sign_up(client: httpx.AsyncClient, mailbox: Mailbox, email: str, password: str = PASSWORD) -> dict[str, Any]:
    """The tokens of a new customer."""
    await post(client, "/auth/sign-up", email=email, name="Ada Lovelace")
    token = await mailbox.token_for(email)
    tokens: dict[str, Any] = await post(client, "/auth/sign-up/confirmation", token=token, password=password)
    return tokens


async def sign_in_as_admin(client: httpx.AsyncClient, database: Database, email: str | None = None) -> dict[str, Any]:
    """The tokens of an admin, who has signed in with a one-time token and has no password yet."""
    token = await create_admin(database, email or new_address())
    tokens: dict[str, Any] = await post(client, "/auth/one-time", token=token)
    return tokens
