"""The limit of open files of a process."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from typing import Final

from howdah.serving.limits import ServerLimits

# File descriptors for everything that isn't a connection of a client: the database's, files, and the log.
_OTHER_FILES: Final = 200

_log: Final = logging.getLogger("howdah.serving")


def fit_file_limit(limits: ServerLimits) -> ServerLimits:
    """Raise the process's limit of open files as needed. If the system forbids it, lower `max_connections`."""
    if sys.platform == "win32":
        return limits
    import resource

    needed = limits.max_connections + limits.reserved_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == needed:
        return limits
    fitting = max(1, allowed - limits.reserved_connections - _OTHER_FILES)
    _log.warning(
        "max_connections is %d instead of %d, because the process may open only %d files: raise its limit (ulimit -n)",
        *(fitting, limits.max_connections, allowed),
    )
    return replace(limits, max_connections=fitting)
