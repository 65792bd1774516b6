"""Text of a model or a server, made safe for a terminal."""

from __future__ import annotations

import unicodedata


def escape_control_characters(text: str) -> str:
    """Returns text that a terminal shows but does not obey: control characters and those that reorder text are escaped.

    Newlines and tabs stay. C0 controls become their pictures (U+2400 and following), all others \\x.. or \\u.... .
    """
    return "".join(_escape_character(character) for character in text)


def _escape_character(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    if character in "\u200c\u200d":  # joiners: words and emoji are written with them
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
