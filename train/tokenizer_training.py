"""A tokenizer of one's own: byte-level BPE with StarCoder's pipeline and special tokens.

The ids begin as StarCoder's do: 19 special tokens, then all 256 bytes, then the merges, most
frequent first. The published vocabulary lacks fourteen bytes; one trained here lacks none.
"""

import itertools
from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "<reponame>",
)
"""StarCoder's special tokens; the position of one is its id."""

SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
"""Special tokens and bytes: a vocabulary without a single merge."""

# A pair seen once says nothing about other text.
_FEWEST_OCCURRENCES = 2


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> bytes:
    """The contents of a ``tokenizer.json`` trained on `texts`; the same bytes for the same texts.

    Args:
      texts: documents, read once; the text of a special token in them is text like any other.
      vocab_size: most entries, special tokens and bytes included. Texts with too few different
        pairs give fewer; the model may still have `vocab_size` rows.

    Raises:
      ValueError: a `vocab_size` without room for special tokens and bytes, or no texts.
    """
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int):
        raise ValueError(
            f"vocab_size: {vocab_size!r}, expected an integer; pass the number of entries"
        )
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size: {vocab_size}, expected {SMALLEST_VOCABULARY} or more "
            f"({len(SPECIAL_TOKENS)} special tokens and 256 bytes); ask for a larger vocabulary"
        )
    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        raise ValueError("texts: no document, expected one or more; check where they come from")
    library = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_FEWEST_OCCURRENCES,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        # Sorted by the trainer, so bytes take ids 19..274 in the order of StarCoder's.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(itertools.chain([first], texts), trainer)
    return library.to_str(pretty=True).encode()
