"""Token stores in memory, and documents with all that makes cutting hard."""

import zlib
from collections.abc import Sequence

import numpy as np

from jaxcoder.tokenizer import Tokenizer
from train.token_store import TokenStore

_FRAGMENTS = (
    *("def ", "f", "(x)", ":\n", "    ", "        ", "return ", "\t", "\r\n", "\n\n", " = ", "12"),
    *("345", "# ", "é", "日本", "🙂", "👩‍🚀", "e\u0301", "\ufeff", "\u2028", "½", "٣", "\x00"),
    *("<fim_middle>", "<fim_prefix>", "<fim_suffix>", "<|endoftext|>", "<fim_pad>", "<filename>"),
    *("self", ".", '"', "\\", "import os\n", "if x:\n", "  ", "\ufffd"),
)


def store_of(
    texts: Sequence[str], tokenizer: Tokenizer, *, validation: Sequence[int] = ()
) -> TokenStore:
    """A store of these documents, the numbers of `validation` held out."""
    return store_of_ids([tokenizer.encode(text) for text in texts], validation=validation)


def store_of_ids(
    documents: Sequence[Sequence[int]], *, validation: Sequence[int] = (), header: int = 0
) -> TokenStore:
    """As `store_of`, from ids, of which each document's first `header` are its header."""
    parts = [np.array(ids, np.uint16) for ids in documents]
    is_validation = np.zeros(len(documents), bool)
    is_validation[list(validation)] = True
    return TokenStore(
        tokens=np.concatenate(parts),
        starts=np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64),
        names=tuple(f"document_{number}.py" for number in range(len(parts))),
        text_bytes=np.zeros(len(parts), np.int64),
        header_lengths=np.full(len(parts), header),
        checksums=np.array([zlib.crc32(part.tobytes()) for part in parts], np.uint32),
        is_validation=is_validation,
        repeats=np.full(len(parts), -1),
        report={},
    )


def generated_documents(count: int, *, seed: int = 0, mean: int = 20) -> list[str]:
    """Texts of `mean` fragments on average, some of none: code, emoji, sentinels' look-alikes."""
    rng = np.random.default_rng(seed)
    lengths = rng.geometric(1 / mean, count) - 1
    chosen = iter(rng.integers(0, len(_FRAGMENTS), lengths.sum()).tolist())
    return ["".join(_FRAGMENTS[next(chosen)] for _ in range(length)) for length in lengths]
