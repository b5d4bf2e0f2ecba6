"""FastAPI dependencies of the routes of users."""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of local names as texts.

from typing import Annotated, Final

from howdah import JsonViewReader
from howdah.fastapi import Resource
from shop.users.models import User
from shop.users.service import USER_VIEW
from shop.web.dependencies import principal_reader

user_reader: Final = Resource("user_list", USER_VIEW.open)

UserReader = Annotated[JsonViewReader[User], principal_reader(user_reader)]
