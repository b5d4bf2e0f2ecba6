"""Problem responses for the errors of orders."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request, Response

from howdah.fastapi import problem_response
from shop.orders.service import OrderNotPayable


def add_problem_handlers(app: FastAPI) -> None:
    """Register a handler for each error of `shop.orders.service`."""

    @app.exception_handler(OrderNotPayable)
    async def handle_not_payable(request: Request, error: OrderNotPayable) -> Response:
        return problem_response(HTTPStatus.CONFLICT, "order-not-payable", detail=str(error), order_status=error.status)
