"""`TextStream`: the ids of one completion become text piece by piece, cut at a stop string.

A piece once given is never taken back: bytes of an unfinished character and text that may be the
beginning of a stop string wait for the next token. The work is linear in the text, whatever the
stop strings are.
"""

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Turns the tokens of one completion into text.

    The text after k tokens is all their bytes as UTF-8, invalid ones replaced by U+FFFD, less an
    unfinished last character. At the first k where a stop string occurs in it the text is cut at
    the earliest start of one, and the stream is over. `finish` ends an unfinished character too.

    Args:
      token_bytes: the bytes of one token, e.g. `Tokenizer.token_bytes`.
      stop: stop strings, none of them empty.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stop: Sequence[str]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._matchers = [_Matcher(string) for string in stop]
        self._pieces: list[str] = []
        # Text held back is always the beginning of a stop string: that string and a length say all.
        self._holder = ""
        self._held = 0
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string has occurred; from then on `push` and `finish` return ``""``."""
        return self._stopped

    @property
    def text(self) -> str:
        """All text given so far; after `finish` or a stop, the completion's text."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """The text that `token` makes safe to show; may be empty."""
        return self._advance(self._decoder.decode(self._token_bytes(token)))

    def finish(self) -> str:
        """The text still held back, which may complete a stop string; call it after the last token.

        A character whose last bytes never came becomes U+FFFD.
        """
        piece = self._advance(self._decoder.decode(b"", final=True))
        if self._stopped:
            return piece
        rest = self._holder[: self._held]
        self._held = 0
        self._pieces.append(rest)
        return piece + rest

    def _advance(self, new: str) -> str:
        """Match `new`, and give the held and new text up to a cut or a possible stop string."""
        if self._stopped:
            return ""
        held, holder = self._held, self._holder
        starts = [
            end + 1 - len(matcher.string)
            for end, character in enumerate(new, start=held)
            for matcher in self._matchers
            if matcher.matches(character)
        ]
        if starts:
            self._stopped = True
            ready = min(starts)
        else:
            longest = max(self._matchers, key=lambda matcher: matcher.length, default=None)
            self._held = longest.length if longest else 0
            self._holder = longest.string if longest else ""
            ready = held + len(new) - self._held
        piece = holder[: min(ready, held)] + new[: max(0, ready - held)]
        self._pieces.append(piece)
        return piece


class _Matcher:
    """How much of the beginning of one string the text ends with (Knuth, Morris and Pratt)."""

    def __init__(self, string: str) -> None:
        self.string = string
        self.length = 0
        self._borders = _borders(string)

    def matches(self, character: str) -> bool:
        """Add one character of text; whether the text now ends with the string."""
        self.length = _extend(self.string, self._borders, self.length, character)
        return self.length == len(self.string)


def _borders(string: str) -> list[int]:
    """For each prefix of `string`, the length of its longest proper prefix that also ends it."""
    borders = [0]
    for character in string[1:]:
        borders.append(_extend(string, borders, borders[-1], character))
    return borders


def _extend(string: str, borders: list[int], length: int, character: str) -> int:
    """The longest prefix of `string` that ends (its first `length` characters + `character`)."""
    while length and (length == len(string) or string[length] != character):
        length = borders[length - 1]
    return length + 1 if string[length] == character else 0
