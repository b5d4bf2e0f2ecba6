"""FastAPI dependencies of the routes of users with their orders."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends

from howdah import JsonViewReader
from howdah.fastapi import Resource
from shop.user_orders.service import USER_WITH_ORDERS_VIEW
from shop.users.models import User

user_with_orders_reader: Final = Resource("user", USER_WITH_ORDERS_VIEW.open)

UserWithOrdersReader = Annotated[JsonViewReader[User], Depends(user_with_orders_reader)]
