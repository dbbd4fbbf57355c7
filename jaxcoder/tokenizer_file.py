"""Reading and checking a byte-level BPE ``tokenizer.json`` before the tokenizers library sees it.

The library panics on some broken files and loads others that give wrong ids; so every part that
decides an id is checked here, and what has no bearing on ids (truncation, padding, offsets) is
left behind. Both spellings of a merge are read: ``["a", "b"]`` and, before tokenizers 0.20,
``"a b"``.

Source: the file format of huggingface/tokenizers.
"""

import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .byte_level import BYTE_LETTERS, OPTIONAL_BYTES, spelled_bytes
from .errors import TokenizerError
from .json_file import read_json_object, read_regular_file
from .tokenizer_pipeline import PRE_TOKENIZERS, check_pipeline

END_OF_TEXT = "<|endoftext|>"

_MAX_FILE = 64 << 20
# Far above every published vocabulary; it turns a corrupt id into an error, not an allocation.
_MAX_ID = 1 << 24

# Options of the BPE model that would change ids, and the values that leave them alone.
_MODEL_OPTIONS: dict[str, tuple[Any, ...]] = {
    "type": (None, "BPE"),  # the first files written for GPT-2 have no type
    "dropout": (None, 0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}


class AddedToken(NamedTuple):
    """A token found in text as it stands, before BPE; a special one only where that is asked."""

    content: str
    id: int
    special: bool


class TokenizerFile(NamedTuple):
    """The checked parts of a ``tokenizer.json``; `vocab` holds the added tokens too."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added: tuple[AddedToken, ...]
    splits_digits: bool


def read_tokenizer_file(path: Path, *, vocab_size: int | None, model_type: str) -> TokenizerFile:
    """Read and check ``tokenizer.json``, and ``vocab.json`` and ``merges.txt`` if beside it.

    Args:
      path: the file, of at most 64 MiB.
      vocab_size: rows of the model's embedding, which every id must be below; None: not checked.
      model_type: "gpt_bigcode" or "gpt2"; decides which pre-tokenizers are right.

    Raises:
      TokenizerError: naming file, field and entry.
      ValueError: an unknown `model_type`.
    """
    if model_type not in PRE_TOKENIZERS:
        raise ValueError(f"model_type: {model_type!r}, expected one of {list(PRE_TOKENIZERS)}")
    fields = read_json_object(path, limit=_MAX_FILE, error=TokenizerError)
    try:
        model = fields.get("model")
        if not isinstance(model, dict):
            raise TokenizerError(_wrong_section("model", model, "an object"))
        _check_options(model)
        splits_digits = check_pipeline(fields, model_type)
        vocab = _read_vocab(model)
        merges = _read_merges(model, vocab)
        added = _read_added(fields)
        _check_added(added, vocab, {first + second for first, second in merges})
        _check_ids([*vocab.items(), *((token.content, token.id) for token in added)], vocab_size)
        _check_bytes(vocab)
    except TokenizerError as exc:
        raise TokenizerError(f"{path}: {exc}") from None
    whole = vocab | {token.content: token.id for token in added}
    _check_vocab_beside(path, whole, {token.content for token in added})
    _check_merges_beside(path, merges)
    return TokenizerFile(whole, merges, added, splits_digits)


def _wrong_section(name: str, value: Any, expected: str) -> str:
    return f"{name}: {reprlib.repr(value)}, expected {expected}; save the tokenizer again"


def _check_options(model: Mapping[str, Any]) -> None:
    for name, neutral in _MODEL_OPTIONS.items():
        value = model.get(name)
        if value not in neutral:
            raise TokenizerError(
                f"model.{name}: {reprlib.repr(value)}, expected {neutral[-1]!r}; "
                "only byte-level BPE without dropout, affixes and fallbacks is supported"
            )


def _read_vocab(model: Mapping[str, Any]) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise TokenizerError(
            _wrong_section("model.vocab", vocab, "a non-empty object of tokens and ids")
        )
    _check_unicode("model.vocab", vocab)
    return vocab


def _read_merges(model: Mapping[str, Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    entries = model.get("merges")
    if not isinstance(entries, list):
        raise TokenizerError(_wrong_section("model.merges", entries, "an array of pairs"))
    merges = []
    for index, entry in enumerate(entries):
        match entry.split(" ") if isinstance(entry, str) else entry:
            case [str(first), str(second)]:
                pass
            case _:
                expected = 'two tokens, ["a", "b"] or "a b"'
                raise TokenizerError(_wrong_section(f"model.merges[{index}]", entry, expected))
        for token in (first, second, first + second):
            if token not in vocab:
                raise TokenizerError(
                    f"model.merges[{index}]: {reprlib.repr(entry)} needs the token "
                    f"{reprlib.repr(token)}, expected it in model.vocab; "
                    "take vocabulary and merges of one tokenizer"
                )
        merges.append((first, second))
    return merges


def _read_added(fields: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    entries = fields.get("added_tokens")
    if not isinstance(entries, list):
        raise TokenizerError(_wrong_section("added_tokens", entries, "an array"))
    added: dict[str, AddedToken] = {}
    for index, entry in enumerate(entries):
        where = f"added_tokens[{index}]"
        match entry:
            case {"content": str(content), "id": number, "special": bool(special)} if content:
                pass
            case _:
                expected = "an object with a string `content`, an `id` and a boolean `special`"
                raise TokenizerError(_wrong_section(where, entry, expected))
        if content in added:
            raise TokenizerError(_wrong_section(where, content, "a text not listed before"))
        for name in ("lstrip", "rstrip", "single_word"):
            if entry.get(name, False) is not False:
                raise TokenizerError(
                    f"{where} {reprlib.repr(content)}: {name} is {reprlib.repr(entry[name])}, "
                    "expected false: the token would swallow blanks or depend on its neighbours"
                )
        added[content] = AddedToken(content, number, special)
    _check_unicode("added_tokens", added)
    return tuple(added.values())


def _check_unicode(where: str, tokens: Iterable[str]) -> None:
    """Refuse half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as exc:
        raise TokenizerError(
            f"{where}: a token holds the lone surrogate {exc.object[exc.start]!r}, "
            "expected Unicode text; save the tokenizer again"
        ) from exc


def _check_added(added: tuple[AddedToken, ...], vocab: Mapping[str, int], merged: set[str]) -> None:
    """Check that an added token means one thing, and that plain text cannot make a special one."""
    for index, token in enumerate(added):
        where = f"added_tokens[{index}] {reprlib.repr(token.content)}"
        if vocab.get(token.content, token.id) != token.id:
            raise TokenizerError(
                f"{where}: id {reprlib.repr(token.id)}, expected "
                f"{reprlib.repr(vocab[token.content])} as in model.vocab; save the tokenizer again"
            )
        spelled = spelled_bytes(token.content)
        if spelled != token.content.encode():
            raise TokenizerError(
                f"{where}: in the vocabulary this spells other bytes, {spelled[:20].hex(' ')}; "
                "expected a text that byte-level spelling leaves alone, choose another"
            )
        if token.special and (token.content in merged or token.content in set(BYTE_LETTERS)):
            raise TokenizerError(
                f"{where}: special, but also a byte or the result of a merge, so that plain text "
                "would become a control token; expected a text that no merge makes"
            )
    if not any(token.content == END_OF_TEXT and token.special for token in added):
        raise TokenizerError(
            f"added_tokens: {END_OF_TEXT!r} is missing or not special, expected it with "
            '"special": true; without it no text ends'
        )


def _check_ids(tokens: list[tuple[str, Any]], vocab_size: int | None) -> None:
    limit = _MAX_ID if vocab_size is None else vocab_size
    owners: dict[int, str] = {}
    for token, number in tokens:
        if type(number) is not int or not 0 <= number < limit:
            what = "the limit" if vocab_size is None else "the model's vocab_size"
            raise TokenizerError(
                f"model.vocab or added_tokens: {reprlib.repr(token)} has id "
                f"{reprlib.repr(number)}, expected an integer from 0 to below {what}, {limit}; "
                "take the tokenizer the model was trained with"
            )
        if owners.setdefault(number, token) != token:
            raise TokenizerError(
                f"model.vocab or added_tokens: {reprlib.repr(owners[number])} and "
                f"{reprlib.repr(token)} both have id {number}, expected one token for each id; "
                "save the tokenizer again"
            )


def _check_bytes(vocab: Mapping[str, int]) -> None:
    needed = [byte for byte in range(256) if byte not in OPTIONAL_BYTES]
    missing = [byte for byte in needed if BYTE_LETTERS[byte] not in vocab]
    if missing:
        raise TokenizerError(
            f"model.vocab: {len(missing)} of the {len(needed)} byte tokens that text needs are "
            f"missing, the first 0x{missing[0]:02x} (spelled {BYTE_LETTERS[missing[0]]!r}), and "
            "such text would vanish; expected the vocabulary of a byte-level tokenizer"
        )


def _check_vocab_beside(path: Path, vocab: Mapping[str, int], added: set[str]) -> None:
    """Check an old-style ``vocab.json``, which may list the added tokens or leave them out."""
    beside_path = path.with_name("vocab.json")
    if not beside_path.exists():
        return
    beside = read_json_object(beside_path, limit=_MAX_FILE, error=TokenizerError)
    for token in [*beside, *vocab]:
        ours, theirs = vocab.get(token), beside.get(token)
        if ours != theirs and not (theirs is None and token in added):
            raise TokenizerError(
                f"{beside_path}: {reprlib.repr(token)} has id {reprlib.repr(theirs)}, expected "
                f"{ours} as in {path.name}; remove the file that is not the model's"
            )


def _check_merges_beside(path: Path, merges: list[tuple[str, str]]) -> None:
    """Check an old-style ``merges.txt``: a version line, then one merge to a line."""
    beside_path = path.with_name("merges.txt")
    if not beside_path.exists():
        return
    raw = read_regular_file(beside_path, limit=_MAX_FILE, error=TokenizerError)
    lines = raw.decode("utf-8", errors="replace").splitlines()
    start = 1 if lines and lines[0].startswith("#version") else 0
    theirs = [line for line in lines[start:] if line]
    ours = [" ".join(merge) for merge in merges]
    if ours == theirs:
        return
    shared = min(len(ours), len(theirs))
    index = next((i for i in range(shared) if ours[i] != theirs[i]), shared)
    got, expected = (
        reprlib.repr(side[index]) if index < len(side) else "none" for side in (theirs, ours)
    )
    raise TokenizerError(
        f"{beside_path}: merge {index} is {got}, expected {expected} as in {path.name}; "
        "remove the file that is not the model's"
    )
