"""FastAPI dependencies of the routes of users with their orders."""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of local names as texts.

from typing import Annotated, Final

from howdah import JsonViewReader
from howdah.fastapi import Resource
from shop.user_orders.service import USER_WITH_ORDERS_VIEW
from shop.users.models import User
from shop.web.dependencies import principal_reader

user_with_orders_reader: Final = Resource("user", USER_WITH_ORDERS_VIEW.open)

UserWithOrdersReader = Annotated[JsonViewReader[User], principal_reader(user_with_orders_reader)]
