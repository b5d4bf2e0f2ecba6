"""A process whose wall clock is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from unittest.mock import patch

import howdah.models


@contextmanager
def wall_clock_off_by(difference: timedelta) -> Iterator[None]:
    """While inside, what this process takes for the time (`howdah.utcnow`) differs so much from what it is. The
    database's clock stays right, and so does that of the test."""

    class AnyDateTime(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, datetime)

    class Wrong(datetime, metaclass=AnyDateTime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + difference

    with patch.object(howdah.models, "datetime", Wrong):
        yield
