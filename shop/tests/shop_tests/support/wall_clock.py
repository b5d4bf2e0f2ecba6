"""A wrong wall clock for this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from unittest.mock import patch

import howdah.models


@contextmanager
def wall_clock_off_by(difference: timedelta) -> Iterator[None]:
    """Inside the `with` block, `howdah.utcnow` is wrong by this much. The clocks of the database and of the test are
    correct."""

    class AnyDateTime(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, datetime)

    class WrongDateTime(datetime, metaclass=AnyDateTime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + difference

    with patch.object(howdah.models, "datetime", WrongDateTime):
        yield
