"""The settings of an operator, which are read once from the environment and from files with secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from howdah import Database, InvalidUrl
from howdah.serving import ServerLimits
from shop.keyrings import MissingSecret, missing_secret, parse_keyring

_RATE: Final = r"^[1-9]\d{0,8}/[1-9]\d{0,4}$"

_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

KEYRINGS: Final = ("signing_keys", "encryption_keys")
"""The settings that are keyrings: `shop.keyrings`. A service doesn't start without them."""

_SECRETS_DIR: Final = "SHOP_SECRETS_DIR"


class MissingMailServer(Exception):
    """The service has no server that sends its mails."""


class Settings(BaseSettings):
    """Each field is set by the environment variable `SHOP_<NAME>`. An empty variable counts as not set. Times are in
    seconds, except `key_retention_days`.

    A field without a variable is read from the file `shop_<name>` in the directory `SHOP_SECRETS_DIR`, if that is set.
    Neither the text of the settings nor a validation error contains a secret.
    """

    model_config = SettingsConfigDict(env_prefix="SHOP_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True)

    database_url: str | None = Field(
        default=None,
        repr=False,
        description="The URL with the login of the service. By default an embedded server is used",
    )
    owner_database_url: str | None = Field(
        default=None,
        repr=False,
        description="The URL with the login that owns the tables, for all commands but `shop serve`. With it, "
        "`shop serve` migrates the database",
    )
    signing_keys: SecretStr | None = Field(
        default=None,
        description="The keys of access tokens, as `id:secret,id:secret`. The first one signs; all of them verify. "
        "`shop new-secret` makes one",
    )
    encryption_keys: SecretStr | None = Field(
        default=None,
        description="The keys of the secrets of authenticator apps, as `id:secret,id:secret`. The first one encrypts; "
        "all of them decrypt",
    )
    argon2_memory_kib: int = Field(default=19_456, ge=8, description="The memory of one password hash (Argon2id)")
    argon2_iterations: int = Field(default=2, ge=1)
    argon2_threads: int = Field(default=2, ge=1, description="How many passwords are hashed at once")
    session_idle_days: float = Field(
        default=14.0, gt=0, description="A customer's session ends if it isn't refreshed for this time"
    )
    session_days: float = Field(default=90.0, gt=0, description="The longest session of a customer")
    smtp_url: SecretStr | None = Field(
        default=None,
        description="The mail server, as smtp://user:password@host:587 (STARTTLS) or smtps://user:password@host:465. "
        "By default mails are written to the console",
    )
    console_mails: bool = Field(
        default=False,
        description="Whether mails are written to the console although `database_url` is set. Anybody who reads them "
        "can sign in with their tokens",
    )
    mail_from: str = Field(default="Shop <shop@localhost>", description="The sender of mails")
    web_url: str | None = Field(
        default=None,
        pattern="^https?://",
        description="The address of the web client. The links in mails begin with it",
    )
    data_dir: Path | None = Field(default=None, description="The directory with the data of the embedded server")
    host: str = "127.0.0.1"
    allowed_hosts: Annotated[list[str] | None, NoDecode] = Field(
        default=None,
        description="The allowed values of the header Host, such as shop.example.com,*.example.org; * allows all. By "
        "default all are allowed; on a loopback address only localhost, 127.0.0.1 and [::1]",
    )
    internal_host: str = "127.0.0.1"
    internal_port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Serve /metrics, /docs and /openapi.json on this port of `internal_host` only",
    )
    log_format: Literal["auto", "json", "console"] = "auto"
    workers: int = Field(default=1, ge=1, description="The number of processes that serve requests")
    pool_size: int = Field(default=20, ge=1, description="The pool of customers, in each process")
    staff_pool_size: int = Field(
        default=12,
        ge=1,
        description="The pool of operators and admins. A quarter of it serves exports and bulk uploads",
    )
    system_pool_size: int = Field(
        default=10, ge=4, description="The pool of the ledger, of sign-ins, API keys and periodic jobs"
    )
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
    maintenance: bool = Field(
        default=True,
        description="Whether this process voids expired holds, links seals, and deletes old keys and sign-ins. At "
        "least one process must do this",
    )
    shutdown_timeout: float = Field(
        default=25.0, gt=0, description="The process ends at the latest at this time after SIGTERM"
    )
    shutdown_pause: float = Field(
        default=5.0,
        ge=0,
        description="How long requests are served after SIGTERM, while /readyz fails, so that the proxy learns of it. "
        "It is a part of `shutdown_timeout`. Ctrl+C skips it",
    )
    max_requests_in_progress: int = Field(
        default=1_000, ge=64, description="Fewer are admitted if they take longer than `request_target`"
    )
    request_target: float = Field(
        default=0.05, gt=0, description="The target for the average time in progress, without streams"
    )
    max_request_wait: float = Field(default=0.75, gt=0, description="How long a request may wait to be admitted (503)")
    max_connections: int = Field(default=1_000, ge=1, description="Above it, a connection gets a 503; in each process")
    max_header_bytes: int = Field(
        default=16_384, ge=1_024, description="The size of the request line and all headers (431)"
    )
    max_headers: int = Field(default=100, ge=10, description="The number of headers of a request (431)")
    header_timeout: float = Field(default=10.0, gt=0, description="How long the header of a request may take (408)")
    max_body_bytes: int = Field(
        default=1_048_576, ge=1_024, description="The size of a body (413). Bulk uploads have limits of their own"
    )
    body_timeout: float = Field(default=15.0, gt=0, description="The longest pause in a body (408)")
    max_body_seconds: float = Field(
        default=30.0, gt=0, description="How long a body may take (408), with one second more for each 64 KiB"
    )
    write_timeout: float = Field(
        default=30.0, gt=0, description="How long a client may read nothing of its response before it is disconnected"
    )
    keep_alive_timeout: float = Field(
        default=90.0,
        gt=0,
        description="An idle connection is closed after this time. It must be longer than the proxy's: nginx has 75 s",
    )
    trusted_proxies: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="The networks of proxies, such as 10.0.0.0/8,::1, or unix. Only their X-Forwarded-For and "
        "X-Forwarded-Proto are used",
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="The origins whose pages may use the API in a browser, such as https://app.example.com. By default "
        "none",
    )
    rate_limits: bool = Field(default=True, description="Whether requests are limited by the settings that follow")
    rate_limit_address: str = Field(
        default="30000/60", pattern=_RATE, description="Requests/seconds of an address, in one process (429)"
    )
    rate_limit_read: str = Field(default="6000/60", pattern=_RATE, description="The same for reads of a principal")
    rate_limit_list: str = Field(
        default="3000/60",
        pattern=_RATE,
        description="The same for lists, statements and balances. A principal has at most a quarter of `pool_size`, "
        "and half of `staff_pool_size`, of them in progress at a time",
    )
    rate_limit_write: str = Field(default="3000/60", pattern=_RATE, description="The same for writes")
    rate_limit_money: str = Field(default="3000/60", pattern=_RATE, description="The same for transfers and payments")
    rate_limit_bulk: str = Field(default="120/60", pattern=_RATE, description="The same for batches and exports")
    rate_limit_sign_in: str = Field(
        default="60/60", pattern=_RATE, description="The same for attempts to sign in, for each address"
    )
    rate_limit_entries: int = Field(
        default=20_000, ge=2, description="The principals, and the addresses, that each limit remembers"
    )

    @property
    def signing_keyring(self) -> Mapping[str, str]:
        """The keys of access tokens by their ids. Raises `MissingSecret`."""
        if self.signing_keys is None:
            raise missing_secret("SHOP_SIGNING_KEYS")
        return parse_keyring(self.signing_keys.get_secret_value())

    @property
    def encryption_keyring(self) -> Mapping[str, str]:
        """The keys of the secrets of authenticator apps. Raises `MissingSecret`."""
        if self.encryption_keys is None:
            raise missing_secret("SHOP_ENCRYPTION_KEYS")
        return parse_keyring(self.encryption_keys.get_secret_value())

    def check_secrets(self) -> None:
        """Raise `MissingSecret` if a secret is missing that `shop.generated_secrets` doesn't make either."""
        for name in KEYRINGS:
            if self.database_url is not None and getattr(self, name) is None:
                raise missing_secret(f"SHOP_{name.upper()}")

    def check_mails(self) -> None:
        """Raise `MissingMailServer` if mails with tokens would be written to the console of a service in production."""
        if self.smtp_url is None and self.database_url is not None and not self.console_mails:
            raise MissingMailServer(
                "SHOP_SMTP_URL isn't set, so mails with tokens would be written to the console: set it to "
                "smtps://user:password@host, or set SHOP_CONSOLE_MAILS=on if only developers read the console"
            )

    @model_validator(mode="after")
    def _check_keyrings(self) -> Self:
        """Reject a key that is in both keyrings: a process that may only decrypt could also sign tokens."""
        if self.signing_keys is not None and self.encryption_keys is not None:
            common = {*self.signing_keyring.values()} & {*self.encryption_keyring.values()}
            if common:
                raise ValueError(
                    "SHOP_SIGNING_KEYS and SHOP_ENCRYPTION_KEYS have a key in common: make another one with "
                    "`shop new-secret`"
                )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments come before the environment, and the environment before the files with secrets."""
        folder = os.environ.get(_SECRETS_DIR)
        if not folder:
            return init_settings, env_settings
        if not Path(folder).is_dir():
            raise MissingSecret(f"{_SECRETS_DIR}: {folder} isn't a directory")
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, secrets_dir=folder)

    @property
    def server_limits(self) -> ServerLimits:
        """The limits for the connections of `shop serve`."""
        return ServerLimits(
            max_connections=self.max_connections,
            max_header_bytes=self.max_header_bytes,
            max_headers=self.max_headers,
            header_timeout=self.header_timeout,
            body_timeout=self.body_timeout,
            write_timeout=self.write_timeout,
            keep_alive_timeout=self.keep_alive_timeout,
        )

    @model_validator(mode="after")
    def _check_shutdown(self) -> Self:
        if self.shutdown_timeout <= self.shutdown_pause:
            raise ValueError(
                f"SHOP_SHUTDOWN_TIMEOUT ({self.shutdown_timeout:g} s) must be longer than SHOP_SHUTDOWN_PAUSE "
                f"({self.shutdown_pause:g} s), because the timeout includes the pause"
            )
        return self

    def with_hosts_of(self, address: str) -> Self:
        """The settings for a service that listens on this address.

        On a loopback address only browsers and programs of this machine send requests. But a web page could send them,
        too, under its own host name, if that resolves to this address (DNS rebinding).
        """
        if self.allowed_hosts is not None or address not in _LOOPBACK_HOSTS:
            return self
        return self.model_copy(update={"allowed_hosts": ["localhost", "127.0.0.1", "[::1]"]})

    @field_validator("allowed_hosts", "cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        return [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value

    @field_validator(*KEYRINGS)
    @classmethod
    def _check_keyring(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_keyring(value.get_secret_value())
        return value

    @field_validator("database_url", "owner_database_url")
    @classmethod
    def _validate_database_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            Database(url)  # it opens no connection
        except InvalidUrl as error:
            raise ValueError(str(error)) from None
        return url
