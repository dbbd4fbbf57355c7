"""Fill-in-the-middle: where the sentinels stand, and how a long context is cut around the hole.

Source: Bavarian et al., arXiv 2207.14255; the order is that of SantaCoder and StarCoder
(bigcode-project/Megatron-LM, ``gpt_dataset.py``). Inference and training share these layouts.
"""

from collections.abc import Sequence
from typing import NamedTuple


class FimTokens(NamedTuple):
    """Ids of the sentinels."""

    prefix: int
    """Of ``<fim_prefix>``."""
    middle: int
    """Of ``<fim_middle>``."""
    suffix: int
    """Of ``<fim_suffix>``."""
    pad: int | None
    """Of ``<fim_pad>``; None where the tokenizer has none. No layout uses it."""


def psm_prompt(prefix_ids: Sequence[int], suffix_ids: Sequence[int], fim: FimTokens) -> list[int]:
    """``<prefix> p <suffix> s <middle>``: the middle, then end of text, is what the model adds.

    Args:
      prefix_ids, suffix_ids: p and s, ids before and after the hole, without sentinels.
      fim: the tokenizer's sentinels.
    """
    return [fim.prefix, *prefix_ids, fim.suffix, *suffix_ids, fim.middle]


def spm_prompt(prefix_ids: Sequence[int], suffix_ids: Sequence[int], fim: FimTokens) -> list[int]:
    """``<prefix> <suffix> s <middle> p``: as in `psm_prompt`, but the middle follows the prefix.

    This is the paper's variant 2, which BigCode's models saw in half of their FIM samples. The
    order ``<suffix> s <prefix> p <middle>`` found elsewhere is not theirs.

    Args:
      prefix_ids, suffix_ids, fim: as in `psm_prompt`.
    """
    return [fim.prefix, fim.suffix, *suffix_ids, fim.middle, *prefix_ids]


def trim_around_hole(
    prefix_ids: Sequence[int], suffix_ids: Sequence[int], budget: int
) -> tuple[list[int], list[int], tuple[int, int]]:
    """Keep the `budget` ids nearest the hole, on both sides of it.

    Ids go from the prefix's start and the suffix's end. When both sides are long the suffix keeps a
    quarter of the budget, rounded down but at least one id of a budget of two or more, and the
    prefix the rest; what one side does not need goes to the other.

    Args:
      prefix_ids, suffix_ids: ids before and after the hole, without sentinels.
      budget: most ids the two may have together; the caller has taken off the three sentinels.

    Returns:
      The kept prefix, the kept suffix, and how many ids of (prefix, suffix) were dropped.

    Raises:
      ValueError: a budget that is not an integer of zero or more.
    """
    if type(budget) is not int or budget < 0:
        raise ValueError(
            f"budget: {budget!r}, expected an integer >= 0; "
            "the context must hold the three FIM sentinels and the new tokens at least"
        )
    suffix_share = min(budget // 2, max(1, budget // 4))
    prefix_share = budget - suffix_share
    suffix_kept = min(len(suffix_ids), max(suffix_share, budget - len(prefix_ids)))
    prefix_kept = min(len(prefix_ids), max(prefix_share, budget - len(suffix_ids)))
    prefix_dropped = len(prefix_ids) - prefix_kept
    return (
        list(prefix_ids[prefix_dropped:]),
        list(suffix_ids[:suffix_kept]),
        (prefix_dropped, len(suffix_ids) - suffix_kept),
    )
