"""The paths to which a browser is redirected."""

from __future__ import annotations

import re
from typing import Final

# A path of this service. `//host` and `/\host` would be other hosts, and browsers ignore tabs and line ends in a URL.
_LOCAL_PATH: Final = re.compile(r"/(?![/\\])[!-\[\]-~]{0,500}", re.ASCII)


def check_path(path: str | None, *, default: str) -> str:
    """The path if it is one of this service, else the default.

    Without this check, a link could redirect people to a forged page after the sign-in.
    """
    return path if path is not None and _LOCAL_PATH.fullmatch(path) else default
