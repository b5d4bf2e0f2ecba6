"""The application of one process of `shop serve`.

This module imports the service only when it is called, so that the parent of worker processes doesn't load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI


def create_service(embedded_url: str | None, *, address: str) -> FastAPI:
    """Configure this process, and create the application, with the current settings.

    Without `embedded_url`, the settings have the URL of the database. The service listens on `address`.
    """
    from howdah.logs import configure_logging
    from shop.app import create_app
    from shop.generated_secrets import with_generated_secrets
    from shop.memory import collect_less_often, freeze_loaded_objects
    from shop.postgres import service_url
    from shop.settings import Settings

    settings = Settings()
    configure_logging(settings.log_format)
    url = service_url(settings) if embedded_url is None else embedded_url
    service = create_app(url, with_generated_secrets(settings).with_hosts_of(address))
    freeze_loaded_objects()
    collect_less_often()
    return service
