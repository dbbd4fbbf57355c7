"""What StarCoder's pretraining put before a document: where it comes from, between special tokens.

Source: bigcode-project/Megatron-LM's training files, ``<reponame>NAME<filename>PATH`` and a line
end before the code. The number of stars, which they have too, is not known here.
"""

from jaxcoder.errors import ConfigError
from jaxcoder.tokenizer import Tokenizer

from .sources import Document

_REPOSITORY, _PATH = "<reponame>", "<filename>"


def check_headers(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that headers cannot be written with.

    Raises:
      ConfigError: it lacks one of the special tokens.
    """
    for token in (_REPOSITORY, _PATH):
        _special_id(token, tokenizer)


def header_ids(document: Document, tokenizer: Tokenizer) -> list[int]:
    """The ids of a document's header; none where neither its repository nor its path is known.

    Raises:
      ConfigError: the tokenizer lacks one of the special tokens.
    """
    ids: list[int] = []
    for token, text in ((_REPOSITORY, document.repository), (_PATH, document.path)):
        if text:
            ids += [_special_id(token, tokenizer), *tokenizer.encode(text)]
    return [*ids, *tokenizer.encode("\n")] if ids else []


def _special_id(token: str, tokenizer: Tokenizer) -> int:
    ids = tokenizer.encode(token, special=True)
    if len(ids) != 1 or ids[0] not in tokenizer.special_ids:
        raise ConfigError(
            f"source.headers: True, but the tokenizer has no special token {token}; leave headers "
            "off, or train with a tokenizer that has it, such as StarCoder's"
        )
    return ids[0]
