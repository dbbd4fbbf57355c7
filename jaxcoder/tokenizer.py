"""`Tokenizer`: text to token ids and back, by the byte-level BPE of StarCoder and GPT-2.

Text that looks like a special token is text, unless asked otherwise. Nothing is added, trimmed or
cleaned up: ``decode(encode(text)) == text`` for every text whose bytes have tokens. StarCoder has
none for byte F1, which starts U+40000..U+7FFFF (no character is assigned there).
"""

import itertools
import operator
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from .byte_level import spelled_bytes
from .errors import TokenizerError
from .fim import FimTokens
from .tokenizer_file import END_OF_TEXT, TokenizerFile, read_tokenizer_file

# Made with the published StarCoder tokenizer. The second text has runs of digits after blanks.
_STARCODER_VECTORS = {
    "def print_hello_world():": [589, 1459, 81, 7656, 81, 5860, 2262],
    "return  1_000 + 42": [601, 261, 35, 81, 34, 34, 34, 474, 225, 38, 36],
}


class Tokenizer:
    """A checked ``tokenizer.json``; make one with `from_file`."""

    def __init__(
        self, definition: TokenizerFile, *, source: object, vocab_size: int | None = None
    ) -> None:
        """Build from checked parts; `source` names them in errors, `vocab_size` is the model's."""
        self._source = source
        self._ids = definition.vocab
        self._tokens = {token: text for text, token in definition.vocab.items()}
        self._added = {token.content: token for token in definition.added}
        self._special_ids = frozenset(token.id for token in definition.added if token.special)
        self._vocab_size = max(self._tokens) + 1
        self._decodable = max(self._vocab_size, vocab_size or 0)
        self._plain = _build(definition, special_as_text=True)
        self._special = _build(definition, special_as_text=False)

    @classmethod
    def from_file(
        cls, path: Path, *, vocab_size: int | None = None, model_type: str = "gpt_bigcode"
    ) -> "Tokenizer":
        """Read a ``tokenizer.json``.

        Args:
          path: the file, of at most 64 MiB.
          vocab_size: rows of the model's embedding; every id must be below it, and ids past the
            tokenizer's own decode to "". None: not checked.
          model_type: "gpt_bigcode" or "gpt2"; decides how text must be split before BPE.

        Raises:
          TokenizerError: not such a file, or a tokenizer that would give wrong ids; names the
            field and entry.
        """
        path = Path(path)
        definition = read_tokenizer_file(path, vocab_size=vocab_size, model_type=model_type)
        try:
            tokenizer = cls(definition, source=path, vocab_size=vocab_size)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as exc:  # a panic in the library's Rust code is not an Exception
            raise TokenizerError(
                f"{path}: the tokenizers library failed ({type(exc).__name__}: {exc}); "
                "save the tokenizer again"
            ) from exc
        tokenizer._check_starcoder()
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """The largest id plus one; a model's embedding may have more rows."""
        return self._vocab_size

    @property
    def end_of_text(self) -> int:
        """The id of ``<|endoftext|>``; 0 in StarCoder."""
        return self._ids[END_OF_TEXT]

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        return self._special_ids

    @property
    def fim(self) -> FimTokens:
        """The FIM sentinels, ``<fim_prefix>`` and so on, or ``<fim-prefix>`` as SantaCoder spells.

        Raises:
          TokenizerError: one is missing or not special; GPT-2 has none.
        """
        spellings = [
            [f"<fim{separator}{part}>" for part in FimTokens._fields] for separator in "_-"
        ]
        present = [names for names in spellings if any(name in self._ids for name in names)]
        if len(present) != 1:
            raise TokenizerError(
                f"{self._source}: {'both' if present else 'neither'} of the FIM tokens "
                "<fim_prefix> ... and <fim-prefix> ..., expected one spelling; "
                "infilling needs a model trained with it"
            )
        for name in present[0]:
            if name not in self._ids and not name.endswith("pad>"):
                raise TokenizerError(
                    f"{self._source}: FIM token {name!r} is missing, expected it in added_tokens; "
                    "infilling needs a model trained with it"
                )
            if name in self._ids and self._ids[name] not in self._special_ids:
                raise TokenizerError(
                    f"{self._source}: FIM token {name!r} (id {self._ids[name]}) is not special, "
                    'expected "special": true in added_tokens; take the model\'s own tokenizer.json'
                )
        prefix, middle, suffix, pad = present[0]
        ids = self._ids
        return FimTokens(ids[prefix], ids[middle], ids[suffix], ids.get(pad))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text`; no beginning or end of text is added.

        Args:
          text: any Unicode text; may be empty.
          special: make a special token's text that token; else it is text like any other.

        Raises:
          ValueError: not a string, or one with a lone surrogate.
        """
        if not isinstance(text, str):
            raise ValueError(
                f"text: {reprlib.repr(text)} ({type(text).__name__}), expected a str; "
                "decode bytes as UTF-8 first"
            )
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise ValueError(
                f"text: position {exc.start}: the lone surrogate {text[exc.start]!r}, expected "
                "text that UTF-8 can hold; read the file with errors='replace'"
            ) from exc
        library = self._special if special else self._plain
        return library.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, as many as the standard asks.

        Args:
          ids: integers of Python or NumPy; one that no token has, but the model's embedding may
            have a row for, gives no text.
          skip_special: leave special tokens out.

        Raises:
          ValueError: an id that is no integer or out of range, with its position.
        """
        try:
            numbers = list(ids)
        except TypeError as exc:
            raise ValueError(f"ids: {reprlib.repr(ids)}, expected a sequence of integers") from exc
        checked = [self._check_id(f"ids[{i}]", number) for i, number in enumerate(numbers)]
        raw = b"".join(self.token_bytes(number, skip_special=skip_special) for number in checked)
        return raw.decode("utf-8", errors="replace")

    def token_bytes(self, token: int, *, skip_special: bool = True) -> bytes:
        """The bytes of one token, maybe part of a character; a special token's are its text's.

        Args:
          token: an id as in `decode`.
          skip_special: give no bytes for a special token.

        Raises:
          ValueError: an id that is no integer or out of range.
        """
        number = self._check_id("token", token)
        if skip_special and number in self._special_ids:
            return b""
        return spelled_bytes(self._tokens.get(number, ""))

    def sentinels_in(self, text: str) -> list[str]:
        """The special tokens whose text occurs in `text`, in the order of their ids."""
        special = (token for token in self._added.values() if token.special)
        ordered = sorted(special, key=lambda token: token.id)
        return [token.content for token in ordered if token.content in text]

    def _check_id(self, where: str, number: Any) -> int:
        try:
            checked = -1 if isinstance(number, bool | np.bool_) else operator.index(number)
        except TypeError:
            checked = -1
        if not 0 <= checked < self._decodable:
            raise ValueError(
                f"{where}: {reprlib.repr(number)}, expected an integer from 0 to "
                f"{self._decodable - 1}; pass ids of this tokenizer's model"
            )
        return checked

    def _check_starcoder(self) -> None:
        """Check known ids, where a file has the layout of StarCoder's: names alone prove little."""
        starcoder = self._ids.get("<fim_prefix>") == 1 and self._ids.get("<filename>") == 5
        if not starcoder or self._vocab_size < 49152:
            return
        for text, expected in _STARCODER_VECTORS.items():
            got = self.encode(text)
            if got != expected:
                raise TokenizerError(
                    f"{self._source}: model: {text!r} encodes to {got}, expected {expected} of the "
                    "StarCoder tokenizer; take the tokenizer.json the model was trained with"
                )


def _build(definition: TokenizerFile, *, special_as_text: bool) -> tokenizers.Tokenizer:
    """The library's tokenizer, from checked parts alone: the file itself never reaches it."""
    library = tokenizers.Tokenizer(models.BPE(vocab=definition.vocab, merges=definition.merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if definition.splits_digits:
        digits = pre_tokenizers.Digits(individual_digits=True)
        library.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    else:
        library.pre_tokenizer = byte_level
    # Every added token is in the vocabulary already: the library would number it anew otherwise.
    # Each call rebuilds the library's matcher of all of them, hence one call for a run of tokens.
    for special, run in itertools.groupby(definition.added, key=lambda token: token.special):
        added = [
            tokenizers.AddedToken(token.content, normalized=False, special=special) for token in run
        ]
        if special:
            library.add_special_tokens(added)
        else:
            library.add_tokens(added)
    library.encode_special_tokens = special_as_text
    return library
