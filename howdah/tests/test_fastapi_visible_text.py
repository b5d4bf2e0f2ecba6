"""`VisibleText` accepts names in many scripts, and rejects characters that a reader can't see."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from howdah.fastapi import VisibleText

NAME = TypeAdapter(Annotated[str, VisibleText(max_length=100)])
TEXT = TypeAdapter(Annotated[str, VisibleText(max_length=100, min_length=0, multiline=True)])


@pytest.mark.parametrize(
    "name",
    [
        "Ada Lovelace",
        "Zoë O’Brien-Sørensen",
        "李小龍",
        "葛\U000e0100城",  # an ideographic variation
        "می\u200cخواهم",  # Persian needs the non-joiner
        "क्\u200dष",  # Devanagari needs both joiners, after a virama
        "नेपाल्\u200cहरु",
        "രാമന്\u200d",  # Malayalam: a chillu at the end of a word
        "രാമന്\u200d നായര്\u200d",
        "র\u200d্যাচেল",  # Bengali and Kannada: a joiner before the virama
        "ರ\u200d್ಯಾಂಕ್",
        "ℹ\ufe0f",
        "👩🏽\u200d🚀",
        "👩\u200d👩\u200d👧",
        "❤\ufe0f 1\ufe0f⃣",
        "🏳\ufe0f\u200d🌈",
        "🇬🇧",
    ],
)
def test_names_of_many_scripts_are_accepted(name: str) -> None:
    assert NAME.validate_python(name) == name


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("admin\u202egnp", 6),
        ("a\u2066b", 2),
        ("ad\u200bmin", 3),
        ("ad\u200dmin", 3),
        ("\u200cada", 1),
        ("ada\u200d", 4),
        ("क\u200d्ष", 2),  # a joiner before the virama has no effect after another letter
        ("\ufeffada", 1),
        ("a\u00adda", 2),
        ("ada\ufe0f", 4),
        ("\u3164", 1),
        ("a\u034fda", 2),
        ("a\U000e0061", 2),
        ("a\nb", 2),
        ("a\x00b", 2),
        ("a\x1b[31m", 2),
        ("a\u2028b", 2),
    ],
)
def test_characters_that_a_reader_cannot_see_are_rejected(name: str, position: int) -> None:
    with pytest.raises(ValidationError) as caught:
        NAME.validate_python(name)
    [error] = caught.value.errors()
    assert (error["type"], error["ctx"]["position"]) == ("invisible_character", position)
    assert error["ctx"]["code"] == f"U+{ord(name[position - 1]):04X}"


@pytest.mark.parametrize("name", ["", " ", "\u00a0\u3000", "\u2800", " \u2800 "])
def test_a_name_that_looks_empty_is_too_short(name: str) -> None:
    with pytest.raises(ValidationError, match="at least 1 character"):
        NAME.validate_python(name)


def test_spaces_at_the_ends_are_removed_and_characters_composed() -> None:
    assert NAME.validate_python("  Zoe\u0308 \u00a0") == "Zoë"


def test_the_length_is_limited_before_and_after_the_normalization() -> None:
    assert NAME.validate_python("x" * 100) == "x" * 100
    for name in ("x" * 101, " " + "x" * 100, "\u0958" * 51):  # the last one becomes twice as long
        with pytest.raises(ValidationError, match="at most 100 characters"):
            NAME.validate_python(name)


def test_a_text_of_several_lines_has_tabs_and_line_feeds() -> None:
    assert TEXT.validate_python("one\r\ntwo\n\tthree\n") == "one\ntwo\n\tthree"
    assert TEXT.validate_python("") == ""
    for text in ("a\rb", "a\x0bb", "a\u202eb"):
        with pytest.raises(ValidationError, match="invisible"):
            TEXT.validate_python(text)


def test_every_control_and_format_character_is_rejected() -> None:
    """Compared with Python's Unicode data, because the ranges are written out."""
    accepted = []
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp"):
            try:
                NAME.validate_python(f"a{chr(code)}b")
            except ValidationError:
                continue
            accepted.append(hex(code))
    assert accepted == []


@given(st.text(max_size=20))
def test_a_text_that_matches_the_schema_is_accepted(text: str) -> None:
    for adapter in (NAME, TEXT):
        schema = adapter.json_schema()
        assert schema["pattern"].endswith("$")
        pattern = schema["pattern"][:-1] + r"\Z"  # Python's `$` also matches before a newline at the end
        if len(text) >= schema.get("minLength", 0) and re.search(pattern, text):
            normalized = adapter.validate_python(text)
            assert unicodedata.is_normalized("NFC", normalized)
            assert adapter.validate_python(normalized) == normalized
