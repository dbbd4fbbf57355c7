"""What a token store was made from, in a few hashes: other data or another tokenizer shows."""

import hashlib
import json
from collections.abc import Mapping

from jaxcoder.errors import ConfigError
from jaxcoder.problems import raise_if_any
from jaxcoder.tokenizer import Tokenizer

from .config import SourceConfig
from .sources import BadDocument, Document


def fingerprint(documents: bytes, source: SourceConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """All that decides a store's content; `documents` is the last `chain`.

    Which files are looked at, and how many may be bad, shows in the documents.
    """
    return {
        "documents": documents.hex(),
        "tokenizer": _tokenizer_digest(tokenizer),
        "headers": str(source.headers),
        "validation_share": repr(source.validation_share),
    }


def chain(before: bytes, document: Document | BadDocument, *, headers: bool) -> bytes:
    """SHA-256 over the hash of all documents `before`, ``b""`` at first, and the next one."""
    if isinstance(document, BadDocument):
        fields = ["bad", document.name, document.reason]
    elif headers:
        fields = ["good", *document]
    else:
        fields = ["good", document.name, document.text]
    return hashlib.sha256(before + json.dumps(fields).encode()).digest()


def folder_name(parts: Mapping[str, str]) -> str:
    """A name for what has this fingerprint."""
    return "tokens-" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def check_same(now: Mapping[str, str], then: Mapping[str, str]) -> None:
    """Raise ConfigError, with every part that differs, unless a run can go on with what is now."""
    changed = [
        f"{part}: {then.get(part)} when the run began, {value} now"
        for part, value in now.items()
        if then.get(part) != value
    ]
    raise_if_any(
        changed,
        "data",
        remedy="not what the run began with, so its batches cannot go on; put the documents, "
        "settings and tokenizer back as they were, or start another run",
        error=ConfigError,
    )


def _tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of all tokens, and of how text is encoded in which each stands twice in a row.

    The text tells splitting, and the order of merges where the order of tokens does not.
    """
    size = tokenizer.vocab_size
    tokens = [tokenizer.token_bytes(number, skip_special=False) for number in range(size)]
    probe = b"\n".join(token * 2 for token in tokens).decode("utf-8", "ignore")
    parts = [
        [token.hex() for token in tokens],
        sorted(tokenizer.special_ids),
        tokenizer.encode(probe),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
