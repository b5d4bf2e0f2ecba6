"""Run an ASGI application with the error handlers of another one."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp


def add_handlers_of(application: FastAPI, app: ASGIApp) -> ExceptionMiddleware:
    """`app` with the error handlers of `application`. As in Starlette, an error without a handler is raised."""
    handlers = {
        key: handler
        for key, handler in application.exception_handlers.items()
        if key not in (Exception, HTTPStatus.INTERNAL_SERVER_ERROR)
    }
    return ExceptionMiddleware(app, handlers)
