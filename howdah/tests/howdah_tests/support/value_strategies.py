"""Hypothesis strategies for values that PostgreSQL can store."""

from __future__ import annotations

from hypothesis import strategies as st

# PostgreSQL stores no NUL, and UTF-8 has no surrogates.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
# Beyond this range JSONB stores an integer of more than 64 bits, which the ORM reads as a float.
FLOATS = st.floats(-1e18, 1e18)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
