"""FastAPI dependencies of the routes of users."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends

from howdah import JsonViewReader
from howdah.fastapi import Resource
from shop.users.models import User
from shop.users.service import USER_VIEW

user_reader: Final = Resource("user_list", USER_VIEW.open)

UserReader = Annotated[JsonViewReader[User], Depends(user_reader)]
