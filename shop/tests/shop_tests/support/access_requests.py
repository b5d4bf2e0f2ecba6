"""The requests of the matrix test, one method for each route that needs a body, marks or a new object."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID, uuid4

import pyotp
from sqlalchemy import delete, update

from howdah.testing.access import AccessMatrix, Case, RequestData
from shop.identity.encryption import SecretBox
from shop.identity.models import Credential, Purpose, SignInThrottle
from shop.identity.one_time_tokens import issue_token
from shop.identity.principals import Role
from shop.identity.totp import begin_enrolment
from shop_tests.support.access_world import BALANCE_MARK, SAME_ORIGIN, World, new_email, new_name
from shop_tests.support.accounts import PASSWORD, Person, create_person, hash_password
from shop_tests.support.identity import TEST_SETTINGS

MakeRequest = Callable[[Case], RequestData | Awaitable[RequestData]]

_ITEMS: Final = [{"sku": "TEA", "quantity": 1, "unit_price_cents": 1}]
_ANY_VERSION: Final = {"If-Match": "*"}
_NEW_PASSWORD: Final = "violet-engine-pepper-lake"
_NDJSON: Final = {"Content-Type": "application/x-ndjson"}
_FORM: Final = {"Content-Type": "application/x-www-form-urlencoded", **SAME_ORIGIN}


def _new_key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid4())}


def _lines(*lines: Mapping[str, Any]) -> bytes:
    return "\n".join(json.dumps({**line, "idempotency_key": str(uuid4())}) for line in lines).encode()


def _is_staff(case: Case) -> bool:
    return case.role != Role.CUSTOMER


@dataclass(frozen=True)
class Requests:
    """The data of a request, for the `Case` of the matrix."""

    world: World

    def choose(self, name: str, case: Case) -> UUID:
        """The id of the own or foreign thing, or an unknown id."""
        if case.kind == "missing":
            return uuid4()
        things = self.world.foreign if case.kind == "foreign" else self.world.own
        found: UUID = getattr(things, name)
        return found

    def path_values(self) -> dict[str, Callable[[Case], Any]]:
        names = ("user_id", "account_id", "order_id", "transfer_id", "key_id")
        return {name: partial(self.choose, name) for name in names}

    def by_operation(self) -> dict[str, MakeRequest]:
        """The requests. Each route that isn't here needs only its path."""
        return {
            "POST /users": lambda case: RequestData(json=self.new_user()),
            "POST /users/bulk": lambda case: RequestData(json=[self.new_user()]),
            "GET /users": self.list_rows("user_id"),
            "PATCH /users/{user_id}": lambda case: RequestData(json={"name": new_name()}, headers=_ANY_VERSION),
            "DELETE /users/{user_id}": self.on_new_person,
            "POST /orders": self.place_order,
            "GET /orders": self.list_rows("order_id"),
            "GET /orders/export": self.list_rows("order_id"),
            "PATCH /orders/status": self.set_status,
            "POST /orders/{order_id}/pay": self.pay,
            "POST /accounts": self.open_account,
            "POST /accounts/batch": self.open_accounts,
            "GET /accounts": self.list_rows("account_id"),
            "PATCH /accounts/{account_id}": lambda case: RequestData(json={"name": new_name()}, headers=_ANY_VERSION),
            "POST /transfers": self.transfer,
            "POST /transfers/linked": self.transfer_linked,
            "POST /transfers/batch": self.transfer_batch,
            "GET /transfers": self.list_rows("transfer_id"),
            "POST /transfers/{transfer_id}/post": self.settle,
            "POST /transfers/{transfer_id}/void": self.settle,
            "POST /transfers/{transfer_id}/reverse": self.reverse,
            "GET /auth/me": self.read_own,
            "GET /auth/sessions": self.list_sessions,
            "DELETE /auth/sessions/{session_id}": self.end_session,
            "POST /auth/sign-out": lambda case: RequestData(ends_session=True),
            "PUT /auth/password": self.change_password,
            "POST /auth/email-change": self.change_email,
            "POST /auth/totp/enrolment-token": self.request_enrolment,
            "POST /auth/invitations": self.invite,
            "PUT /auth/users/{user_id}/role": self.change_role,
            "DELETE /auth/users/{user_id}/sessions": self.on_new_person,
            "DELETE /auth/users/{user_id}/totp": self.on_new_person,
            "POST /auth/api-keys": lambda case: RequestData(json={"name": new_name(), "scopes": ["orders:read"]}),
            "GET /auth/api-keys": self.list_rows("key_id"),
            "DELETE /auth/api-keys/{key_id}": self.revoke_key,
            "POST /auth/sign-up": self.sign_up,
            "POST /auth/sign-up/confirmation": self.confirm_sign_up,
            "POST /auth/sign-in": self.sign_in,
            "POST /auth/one-time": self.sign_in_once,
            "POST /auth/refresh": self.refresh,
            "POST /auth/token": self.get_token,
            "POST /auth/password-reset": self.request_reset,
            "POST /auth/password-reset/confirmation": self.reset_password,
            "POST /auth/email-change/confirmation": self.confirm_email,
            "POST /auth/totp": self.begin_enrolment,
            "POST /auth/totp/confirmation": self.confirm_enrolment,
            "POST /auth/invitations/acceptance": self.accept_invitation,
            "POST /sign-in": self.sign_in_with_form,
            "POST /sign-in/link": self.use_link,
            "POST /sign-in/authenticator": self.begin_enrolment_with_form,
            "POST /sign-in/authenticator/code": self.confirm_enrolment_with_form,
            "POST /sign-in/refresh": lambda case: RequestData(headers=SAME_ORIGIN),
            "POST /sign-out": lambda case: RequestData(headers=SAME_ORIGIN, ends_session=True),
        }

    # users and orders

    def new_user(self) -> dict[str, str]:
        return {"email": new_email(), "name": "Ada"}

    def list_rows(self, name: str) -> MakeRequest:
        """A list has the own row, and for the staff the foreign one, too."""
        own, foreign = (str(getattr(each, name)) for each in (self.world.own, self.world.foreign))
        return lambda case: RequestData(own_marks=[own], foreign_marks=[foreign])

    async def new_person(self, **options: Any) -> Person:
        return await create_person(self.world.database, new_email(), **options)

    async def on_new_person(self, case: Case) -> RequestData:
        """A new person with an app, for requests that delete something."""
        key = uuid4() if case.kind == "missing" else (await self.new_person(has_app=True)).user_id
        return RequestData(path={"user_id": key})

    def place_order(self, case: Case) -> RequestData:
        body = {"user_id": str(self.choose("user_id", case)), "items": _ITEMS}
        return RequestData(json=body, missing=(409,) if _is_staff(case) else (404,))

    def set_status(self, case: Case) -> RequestData:
        return RequestData(json={"order_ids": [str(self.world.foreign.order_id)], "status": "shipped"})

    async def pay(self, case: Case) -> RequestData:
        """The customer pays from their own account. An admin pays from the account of the order's customer."""
        things = self.world.foreign if case.kind == "foreign" else self.world.own
        order = uuid4() if case.kind == "missing" else await self.world.create_order(things.user_id)
        payer = things if _is_staff(case) else self.world.own
        body = {"from_account_id": str(payer.account_id), "to_account_id": str(self.world.till_id)}
        return RequestData(path={"order_id": order}, json=body, headers=_new_key())

    # accounts and transfers

    def open_account(self, case: Case) -> RequestData:
        body = {"name": new_name(), "currency": "GBP", "user_id": str(self.choose("user_id", case))}
        return RequestData(json=body, headers=_new_key(), missing=(409,) if _is_staff(case) else (404,))

    def open_accounts(self, case: Case) -> RequestData:
        """Each line has its own answer. A foreign user and an unknown one must get the same answer."""
        line = {"name": new_name(), "currency": "GBP", "user_id": str(self.choose("user_id", case))}
        return RequestData(content=_lines(line), headers=_NDJSON, missing=(200,), own_marks=['"outcome":"opened"'])

    def transfer(self, case: Case) -> RequestData:
        body = self._from(self.choose("account_id", case))
        return RequestData(json=body, headers=_new_key(), missing=(422,))

    async def transfer_linked(self, case: Case) -> RequestData:
        """One element reverses a transfer, and the other is a transfer."""
        body = {"transfers": [{"reverses": str(await self._moved(case))}, self._from(self.world.own.account_id)]}
        return RequestData(json=body, headers=_new_key())

    async def transfer_batch(self, case: Case) -> RequestData:
        """One line reverses a transfer, and the other is a transfer."""
        lines = _lines({"reverses": str(await self._moved(case))}, self._from(self.choose("account_id", case)))
        return RequestData(content=lines, headers=_NDJSON, missing=(200,), own_marks=['"outcome":"posted"'])

    async def settle(self, case: Case) -> RequestData:
        """Post or void a hold to the account, because only the payee may do that."""
        hold = await self._moved(case, pending_seconds=600)
        return RequestData(path={"transfer_id": hold}, headers=_new_key())

    async def reverse(self, case: Case) -> RequestData:
        return RequestData(path={"transfer_id": await self._moved(case)}, json={}, headers=_new_key())

    def _from(self, account_id: UUID) -> dict[str, Any]:
        """A transfer from this account to the third customer."""
        return {"from_account_id": str(account_id), "to_account_id": str(self.world.counterparty_id), "amount": 1}

    async def _moved(self, case: Case, **options: Any) -> UUID:
        """A new transfer to the account, or an unknown id."""
        if case.kind == "missing":
            return uuid4()
        return await self.world.move(self.world.counterparty_id, self.choose("account_id", case), **options)

    # the own account of the principal

    def read_own(self, case: Case) -> RequestData:
        return RequestData(own_marks=[str(self.world.person(case.role).user_id)])

    async def list_sessions(self, case: Case) -> RequestData:
        own, foreign = [
            (await self.world.open_session(each)).id
            for each in (self.world.person(case.role), self.world.foreign.person)
        ]
        return RequestData(own_marks=[str(own)], foreign_marks=[str(foreign)])

    async def end_session(self, case: Case) -> RequestData:
        if case.kind == "missing":
            return RequestData(path={"session_id": uuid4()})
        person = self.world.person(case.role) if case.kind == "own" else self.world.foreign.person
        return RequestData(path={"session_id": (await self.world.open_session(person)).id})

    async def change_password(self, case: Case) -> RequestData:
        await self._reset(self.world.person(case.role))
        return RequestData(json={"current_password": PASSWORD, "new_password": _NEW_PASSWORD})

    async def change_email(self, case: Case) -> RequestData:
        await self._reset(self.world.person(case.role))
        return RequestData(json={"new_email": new_email(), "password": PASSWORD})

    async def request_enrolment(self, case: Case) -> RequestData:
        await self._reset(self.world.person(case.role))
        return RequestData(json={"password": PASSWORD})

    async def revoke_key(self, case: Case) -> RequestData:
        """An operator sees a key of another user, and may not revoke it."""
        if case.kind == "missing":
            return RequestData(path={"key_id": uuid4()})
        person = self.world.person(case.role) if case.kind == "own" else self.world.foreign.person
        path = {"key_id": await self.world.create_key(person)}
        if case.role == Role.OPERATOR and case.kind == "foreign":
            return RequestData(path=path, success=(403,))
        return RequestData(path=path)

    # what admins do with the accounts of people

    async def invite(self, case: Case) -> RequestData:
        await self._reset()
        return RequestData(json={"email": new_email(), "name": "Ada", "role": "operator"})

    async def change_role(self, case: Case) -> RequestData:
        key = uuid4() if case.kind == "missing" else (await self.new_person()).user_id
        return RequestData(path={"user_id": key}, json={"role": "operator"})

    # sign-up and sign-in

    async def sign_up(self, case: Case) -> RequestData:
        await self._reset()
        return RequestData(json=self.new_user())

    async def confirm_sign_up(self, case: Case) -> RequestData:
        details = {"name": "Ada", "country": None}
        return self._with_password(await self._issue(Purpose.SIGN_UP, email=new_email(), details=details))

    async def sign_in(self, case: Case) -> RequestData:
        return RequestData(json={"email": (await self.new_person()).email, "password": PASSWORD})

    async def sign_in_once(self, case: Case) -> RequestData:
        return RequestData(json={"token": await self._issue_for_new_person(Purpose.SIGN_IN)})

    async def refresh(self, case: Case) -> RequestData:
        opened = await self.world.open_session(await self.new_person())
        return RequestData(json={"refresh_token": opened.refresh_token})

    async def get_token(self, case: Case) -> RequestData:
        person = await self.new_person()
        return self._form(grant_type="password", username=person.email, password=PASSWORD)

    async def request_reset(self, case: Case) -> RequestData:
        await self._reset()
        return RequestData(json={"email": new_email()})

    async def reset_password(self, case: Case) -> RequestData:
        return self._with_password(await self._issue_for_new_person(Purpose.RESET_PASSWORD))

    async def confirm_email(self, case: Case) -> RequestData:
        return RequestData(json={"token": await self._issue_for_new_person(Purpose.CHANGE_EMAIL, email=new_email())})

    async def begin_enrolment(self, case: Case) -> RequestData:
        return RequestData(json={"enrolment_token": await self._issue_for_new_person(Purpose.ENROL_TOTP)})

    async def confirm_enrolment(self, case: Case) -> RequestData:
        token, code = await self._begin_enrolment()
        return RequestData(json={"enrolment_token": token, "code": code})

    async def accept_invitation(self, case: Case) -> RequestData:
        details = {"name": "Ada", "role": "operator"}
        return self._with_password(await self._issue(Purpose.INVITATION, email=new_email(), details=details))

    # the pages

    async def sign_in_with_form(self, case: Case) -> RequestData:
        return self._form(email=(await self.new_person()).email, password=PASSWORD, ends_session=True)

    async def use_link(self, case: Case) -> RequestData:
        return self._form(token=await self._issue_for_new_person(Purpose.SIGN_IN), ends_session=True)

    async def begin_enrolment_with_form(self, case: Case) -> RequestData:
        return self._form(token=await self._issue_for_new_person(Purpose.ENROL_TOTP))

    async def confirm_enrolment_with_form(self, case: Case) -> RequestData:
        token, code = await self._begin_enrolment()
        return self._form(token=token, code=code)

    def _form(self, *, ends_session: bool = False, **fields: str) -> RequestData:
        return RequestData(content=urlencode(fields).encode(), headers=_FORM, ends_session=ends_session)

    def _with_password(self, token: str) -> RequestData:
        return RequestData(json={"token": token, "password": _NEW_PASSWORD})

    async def _issue(self, purpose: Purpose, **options: Any) -> str:
        async with self.world.database.begin() as session:
            return await issue_token(session, purpose, **options)

    async def _issue_for_new_person(self, purpose: Purpose, **options: Any) -> str:
        return await self._issue(purpose, user_id=(await self.new_person()).user_id, **options)

    async def _begin_enrolment(self) -> tuple[str, str]:
        """The token, and the code of an app."""
        person = await self.new_person()
        box = SecretBox(TEST_SETTINGS.encryption_keyring)
        async with self.world.database.begin() as session:
            begun = await begin_enrolment(session, box, person.user_id, person.email)
        token = await self._issue(Purpose.ENROL_TOTP, user_id=person.user_id)
        return token, pyotp.TOTP(begun.secret).now()

    async def _reset(self, person: Person | None = None) -> None:
        """Forget all attempts to sign in, and set the password of the person to `PASSWORD` again."""
        async with self.world.database.begin() as session:
            await session.execute(delete(SignInThrottle))
            if person is not None:
                changed = update(Credential).where(Credential.user_id == person.user_id)
                await session.execute(changed.values(password_hash=hash_password(PASSWORD)))


def create_matrix(app: Any, world: World, expected: Mapping[str, Any]) -> AccessMatrix:
    """The matrix of the service, whose database `world` has filled."""
    foreign = world.foreign
    return AccessMatrix(
        app,
        expected=expected,
        valid={"access token": world.token, "cookie": world.cookie},
        scoped={"API key": world.api_key},
        invalid={
            "expired token": world.expired_token,
            "token for another audience": world.token_for_another_audience,
            "token of an ended session": world.token_of_an_ended_session,
            "revoked API key": world.revoked_key,
        },
        path_values=Requests(world).path_values(),
        requests=Requests(world).by_operation(),
        foreign_marks=[
            BALANCE_MARK,
            foreign.person.email,
            *map(str, (foreign.account_id, foreign.order_id, foreign.transfer_id, foreign.key_id)),
        ],
    )
