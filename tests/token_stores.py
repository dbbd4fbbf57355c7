"""Token stores in memory, and documents with all that makes cutting hard."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from jaxcoder.tokenizer import Tokenizer

_FRAGMENTS = (
    *("def ", "f", "(x)", ":\n", "    ", "        ", "return ", "\t", "\r\n", "\n\n", " = ", "12"),
    *("345", "# ", "é", "日本", "🙂", "👩‍🚀", "e\u0301", "\ufeff", "\u2028", "½", "٣", "\x00"),
    *("<fim_middle>", "<fim_prefix>", "<fim_suffix>", "<|endoftext|>", "<fim_pad>", "<filename>"),
    *("self", ".", '"', "\\", "import os\n", "if x:\n", "  ", "\ufffd"),
)


def store_of(
    texts: Sequence[str], tokenizer: Tokenizer, *, validation: Sequence[int] = ()
) -> SimpleNamespace:
    """What pieces.py and data.py read of a store with these documents."""
    return store_of_ids([tokenizer.encode(text) for text in texts], validation=validation)


def store_of_ids(
    documents: Sequence[Sequence[int]], *, validation: Sequence[int] = ()
) -> SimpleNamespace:
    """As `store_of`, from ids."""
    is_validation = np.zeros(len(documents), bool)
    is_validation[list(validation)] = True
    return SimpleNamespace(
        tokens=np.array([token for ids in documents for token in ids], np.uint16),
        starts=np.concatenate([[0], np.cumsum([len(ids) for ids in documents])]).astype(np.int64),
        names=tuple(f"document_{number}.py" for number in range(len(documents))),
        is_validation=is_validation,
    )


def generated_documents(count: int, *, seed: int = 0, mean: int = 20) -> list[str]:
    """Texts of `mean` fragments on average, some of none: code, emoji, sentinels' look-alikes."""
    rng = np.random.default_rng(seed)
    lengths = rng.geometric(1 / mean, count) - 1
    chosen = iter(rng.integers(0, len(_FRAGMENTS), lengths.sum()).tolist())
    return ["".join(_FRAGMENTS[next(chosen)] for _ in range(length)) for length in lengths]
