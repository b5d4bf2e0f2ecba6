"""Pickling and unpickling of an error."""

from __future__ import annotations

import pickle
from typing import Any


def pickle_roundtrip(error: Exception) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301
