"""The URL of a database: its hosts and the parameters of libpq. An invalid URL is rejected before any connection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlencode

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from howdah.errors import InvalidUrl

_DEFAULT_PORT: Final = 5432
_FORM: Final = "postgresql://user:password@host:port/database"
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_ROLES: Final = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")

# libpq's parameters for TLS. asyncpg reads them, and the files that they name, from a URL.
_TLS_FILES: Final = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
_TLS_PARAMETERS: Final = _TLS_FILES | {"sslmode", "sslpassword"}


def asyncpg_url(url: str | URL) -> tuple[URL, dict[str, Any]]:
    """The URL for SQLAlchemy's asyncpg dialect, and the arguments of `asyncpg.connect` for libpq's parameters.

    With several hosts the arguments have the lists `host` and `port`. Raises `InvalidUrl`, whose text never contains
    the password.
    """
    parsed = _parse(url)
    arguments: dict[str, Any] = {}
    remaining: dict[str, Any] = {}
    tls: dict[str, str] = {}
    for name, given in parsed.query.items():
        if name in {"host", "port"}:
            continue
        if not isinstance(given, str) and len(given) > 1:
            raise InvalidUrl(f"the URL has the parameter {name!r} {len(given)} times: it must have it once")
        value = given if isinstance(given, str) else given[0]
        if name in _TLS_PARAMETERS:
            tls[name] = _check_tls(name, value)
        elif name == "prepared_statement_cache_size":
            remaining[name] = value if value.isdecimal() else _reject(name, value, "a whole number")
        else:
            argument, checked = _check_parameter(name, value)
            arguments[argument] = checked
    if tls:
        arguments["dsn"] = f"postgresql://?{urlencode(tls)}"
    hosts = _hosts(parsed)
    if len(hosts) > 1:
        arguments["host"], arguments["port"] = [host for host, _ in hosts], [port for _, port in hosts]
    else:
        remaining |= {name: parsed.query[name] for name in ("host", "port") if name in parsed.query}
    return parsed.set(query=remaining), arguments


def _check_parameter(name: str, value: str) -> tuple[str, Any]:
    """The name and the value of the argument of `asyncpg.connect`."""
    if name == "connect_timeout":
        return "timeout", _check_seconds(name, value) or None
    if name == "target_session_attrs":
        return name, _check_choice(name, value, _ROLES)
    if name == "application_name":
        return name, value
    raise InvalidUrl(
        f"the URL's parameter {name!r} isn't supported: remove it, and use connect_args for an argument of "
        "asyncpg.connect, or connect_args={'server_settings': {...}} for a setting of the server"
    )


def _parse(url: str | URL) -> URL:
    """The URL with the name of the asyncpg dialect."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # not chained, because their messages may contain the password
        raise InvalidUrl(f"the URL of the database can't be read: write {_FORM}") from None
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+asyncpg")
    if parsed.drivername != "postgresql+asyncpg":
        raise InvalidUrl(f"{parsed.drivername}:// isn't supported: use postgresql:// or postgresql+asyncpg://")
    if parsed.port is not None:
        _check_port(str(parsed.port))
    return parsed


def _hosts(url: URL) -> list[tuple[str, int]]:
    """The hosts and ports of the parameters `host` and `port`, in both forms: `host=a:1&host=b:2`, `host=a,b&port=1,2`.

    A missing port is 5432.
    """
    hosts, ports = _values(url.query, "host"), [_check_port(port) for port in _values(url.query, "port")]
    if len(hosts) <= 1 and len(ports) <= 1:
        if hosts and not hosts[0].startswith("/") and ":" in hosts[0]:
            _check_port(hosts[0].partition(":")[2])
        return [(host, ports[0] if ports else _DEFAULT_PORT) for host in hosts]
    if ports and len(ports) not in (1, len(hosts)):
        raise InvalidUrl(f"the URL has {len(hosts)} hosts and {len(ports)} ports: it must have one port for each host")
    found = []
    for position, each in enumerate(hosts):
        host, colon, port = each.rpartition(":") if ":" in each else (each, "", "")
        if not host:
            raise InvalidUrl("the URL has a parameter 'host' without a name: write host=name:port")
        if colon and ports:
            raise InvalidUrl("the URL has ports in 'host' and in 'port': write host=name1:port1&host=name2:port2")
        own = _check_port(port) if colon else ports[position % len(ports)] if ports else _DEFAULT_PORT
        found.append((host, own))
    return found


def _values(query: Mapping[str, Sequence[str] | str], name: str) -> list[str]:
    given = query.get(name, ())
    return given.split(",") if isinstance(given, str) else [*given]


def _check_port(port: str) -> int:
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        _reject("port", port, "a number from 1 to 65535")
    return int(port)


def _check_seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        _reject(name, value, "a number of seconds, or 0 for no limit")
    return seconds


def _check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        _reject(name, value, f"one of {', '.join(choices)}")
    return value


def _check_tls(name: str, value: str) -> str:
    if name == "sslmode":
        return _check_choice(name, value, _SSL_MODES)
    if name in _TLS_FILES and value and value != "system" and not Path(value).expanduser().is_file():
        _reject(name, value, "the path of a file that exists")
    return value


def _reject(name: str, value: str, expected: str) -> NoReturn:
    raise InvalidUrl(f"the URL's parameter {name!r} must be {expected}, not {value!r}")
