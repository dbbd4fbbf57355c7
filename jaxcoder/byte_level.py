"""GPT-2's byte-level alphabet: every byte is one letter in the spelling of a vocabulary entry.

Source: ``bytes_to_unicode`` of openai/gpt-2: printable Latin-1 stands for itself, the other 68
bytes are U+0100 and on, in order.
"""

# Bytes without a token in StarCoder. None occurs in UTF-8 but F1, which starts U+40000..U+7FFFF.
OPTIONAL_BYTES = frozenset((0xC0, 0xC1, 0xF1, *range(0xF5, 0x100)))


def _byte_letters() -> str:
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_LETTERS = _byte_letters()
"""Letter of each byte: ``BYTE_LETTERS[0x20]`` is "Ġ", the blank."""

_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def spelled_bytes(spelling: str) -> bytes:
    """The bytes that a vocabulary entry spells, or its UTF-8 where a letter spells no byte."""
    try:
        return bytes([_BYTES[letter] for letter in spelling])
    except KeyError:
        return spelling.encode()
