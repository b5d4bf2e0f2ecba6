"""A type for texts that people read: names, titles and descriptions. It rejects characters that a reader can't see."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

# Characters that have no appearance of their own, as ranges of code points. They are the categories Cc (controls), Cf
# (formats, which include bidirectional overrides and zero-width characters), Zl and Zp, and the other code points that
# Unicode calls default-ignorable. PRECIS disallows all of them (RFC 8264, section 9).
_CONTROLS: Final = r"\u0000-\u0008\u000b-\u001f\u007f-\u009f"
_LINES: Final = r"\u0009\u000a"
_INVISIBLE: Final = (
    r"\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_FORBIDDEN: Final = {
    False: re.compile(f"[{_LINES}{_CONTROLS}{_INVISIBLE}]"),
    True: re.compile(f"[{_CONTROLS}{_INVISIBLE}]"),
}

_NON_JOINER: Final = "\u200c"
_JOINER: Final = "\u200d"
_VIRAMA_CLASS: Final = 9  # the canonical combining class of viramas
# In Bengali and Kannada the joiner between RA and a virama keeps the RA as it is. Without the joiner it becomes a mark.
_LETTERS_RA: Final = "\u09b0\u0cb0"
_BLANK_BRAILLE: Final = "\u2800"  # a symbol for Unicode, and empty for a reader


@dataclass(frozen=True, slots=True, kw_only=True)
class VisibleText:
    """A text without invisible characters: `Annotated[str, VisibleText(max_length=100)]`.

    It rejects control characters, characters without an appearance (such as U+200B), and those that change the
    direction of the text after them (U+202A to U+202E, U+2066 to U+2069). With these, a name can look like another one.
    It follows the FreeformClass of PRECIS (RFC 8264) as RFC 8266 uses it for names of people.

    Some scripts and emoji need the joiner (U+200D), the non-joiner (U+200C) or variation selectors. They are accepted
    where they have an effect:

    - the joiner and the non-joiner after a virama (RFC 5892, appendix A), and between letters of Arabic scripts,
    - the joiner also in a sequence of emoji, and after RA in Bengali and Kannada,
    - a variation selector after an emoji, a symbol, a digit, an ideograph or a Mongolian letter.

    Flags of regions that are spelled with tag characters are rejected.

    The value is normalized to NFC, so that equal texts are equal strings, and spaces at both ends are removed. So two
    different keys of a mapping can become equal. With `multiline` the text may have tabs and line feeds, and CR LF
    becomes a line feed. `max_length` is checked before and after these changes, `min_length` only after them. Lengths
    are in code points. Unless `min_length` is 0, at least one character must not be blank.

    Unassigned code points and those for private use are accepted, because a later version of Unicode may assign them.
    Characters that resemble others, such as Cyrillic letters in a Latin name, are accepted.
    """

    max_length: int
    min_length: int = 1
    multiline: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.validate, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The lengths and a pattern, which excludes joiners and variation selectors in any place."""
        forbidden = f"{'' if self.multiline else _LINES}{_CONTROLS}{_INVISIBLE}"
        any_of = f"[^{forbidden}]"
        blank = rf"{'' if not self.multiline else _LINES}\s{_BLANK_BRAILLE}"
        pattern = rf"^{any_of}*[^{forbidden}{blank}]{any_of}*$" if self.min_length else f"^{any_of}*$"
        lengths = {"minLength": self.min_length} if self.min_length else {}
        return {**handler(schema), **lengths, "maxLength": self.max_length, "pattern": pattern}

    def validate(self, text: str) -> str:
        """The normalized text. Raises `PydanticCustomError` with the position of a character that is rejected."""
        self._check_length(text)
        if not (text.isascii() and text.isprintable()):
            if self.multiline:
                text = text.replace("\r\n", "\n")
            for match in _FORBIDDEN[self.multiline].finditer(text):
                if not _is_needed(text, match.start()):
                    raise PydanticCustomError(
                        "invisible_character",
                        "character {position}, {code}, is invisible or changes the direction of text: remove it",
                        {"position": match.start() + 1, "code": f"U+{ord(match[0]):04X}"},
                    )
            text = unicodedata.normalize("NFC", text)
        text = text.strip()
        self._check_length(text)
        if len(text) < self.min_length or (self.min_length and not text.strip(_BLANK_BRAILLE)):
            raise PydanticKnownError("string_too_short", {"min_length": self.min_length})
        return text

    def _check_length(self, text: str) -> None:
        if len(text) > self.max_length:
            raise PydanticKnownError("string_too_long", {"max_length": self.max_length})


def _is_needed(text: str, index: int) -> bool:
    """Whether a joiner or a variation selector has an effect at this place."""
    before, after = text[index - 1 : index], text[index + 1 : index + 2]
    if not before:
        return False
    character = text[index]
    if character in (_JOINER, _NON_JOINER):
        if unicodedata.combining(before) == _VIRAMA_CLASS:
            return True  # also at the end of a word: it ends with a chillu in Malayalam
        if not after:
            return False
        if _is_arabic(before) and _is_arabic(after):
            return True
        if character == _JOINER and unicodedata.combining(after) == _VIRAMA_CLASS:
            return before in _LETTERS_RA
        return character == _JOINER and _is_emoji_part(before) and unicodedata.category(after) in ("So", "Sm")
    return _is_variation_selector(character) and _has_variants(before)


def _is_arabic(character: str) -> bool:
    """Whether it is a letter of a script whose letters join, or a mark on one."""
    return unicodedata.bidirectional(character) == "AL" or unicodedata.name(character, "").startswith("ARABIC ")


def _is_emoji_part(character: str) -> bool:
    # The modifiers of skin colours have the category Sk, and U+FE0F chooses the emoji of a symbol.
    return unicodedata.category(character) in ("So", "Sk", "Sm") or character == "\ufe0f"


def _is_variation_selector(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("VARIATION SELECTOR", "MONGOLIAN FREE VARIATION SELECTOR"))


def _has_variants(character: str) -> bool:
    is_symbol = unicodedata.category(character) in ("So", "Sk", "Sm", "Nd") or character in "#*‼⁉ℹ〰〽"
    return is_symbol or unicodedata.name(character, "").startswith(("CJK ", "MONGOLIAN LETTER"))
