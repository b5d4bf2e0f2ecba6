"""Who may do what with users.

A customer is a row of `users`, and sees and changes only this row. Operators read and create users. Admins also change
and delete them.
"""

from __future__ import annotations

from typing import Final

from howdah.fastapi import allow
from shop.identity.principals import Role
from shop.users.models import User
from shop.web.access import OwnRows, Permission, admins, everyone, staff

READ_USERS: Final = everyone("users:read")
CREATE_USERS: Final = staff("users:write")
CHANGE_USERS: Final = allow(Role.CUSTOMER, Role.ADMIN, scope="users:write")
DELETE_USERS: Final = admins()

OWN_USERS: Final = OwnRows(User.id)

# A person who receives the mails to an address can reset the password of its user. So users change their own address
# with a confirmation by mail.
CHANGE_EMAIL: Final = Permission(
    Role.ADMIN, to="change an email address here: users change their own address with a confirmation by mail"
)
