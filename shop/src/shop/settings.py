"""The settings of an operator, which are read once from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError


class Settings(BaseSettings):
    """Each field is set by the environment variable `SHOP_<NAME>`. An empty variable counts as not set. Times are in
    seconds, except `key_retention_days`.
    """

    model_config = SettingsConfigDict(env_prefix="SHOP_", env_ignore_empty=True, frozen=True)

    database_url: str | None = Field(
        default=None, description="The URL of a database. By default an embedded server is used"
    )
    data_dir: Path | None = Field(default=None, description="The directory with the data of the embedded server")
    host: str = "127.0.0.1"
    log_format: Literal["auto", "json", "console"] = "auto"
    pool_size: int = Field(default=20, ge=1)
    pool_timeout: float = Field(default=5.0, gt=0)
    statement_timeout: float | None = Field(default=30.0, gt=0)
    lock_timeout: float = Field(default=5.0, gt=0)
    submit_timeout: float = Field(
        default=10.0,
        gt=0,
        description="How long a request waits for the result of a batch: a transfer, or a row that is read",
    )
    key_retention_days: float = Field(
        default=30.0, ge=1, description="The minimum time for which idempotency keys are kept"
    )
    shutdown_timeout: int = Field(default=30, ge=0, description="How long a shutdown waits for requests")

    @field_validator("database_url")
    @classmethod
    def _validate_database_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            scheme = make_url(url).drivername
        except (ArgumentError, ValueError):  # not chained, because their messages contain the password
            raise ValueError("not a URL: write postgresql://user:password@host:port/database") from None
        if scheme not in {"postgresql", "postgres", "postgresql+asyncpg"}:
            raise ValueError(f"{scheme}:// isn't supported: write postgresql://user:password@host:port/database")
        return url
