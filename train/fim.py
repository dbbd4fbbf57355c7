"""Fill-in-the-middle examples: a piece of code, cut at two places and put in another order.

As in bigcode-project/Megatron-LM (``gpt_dataset.py``): the cuts are two integers drawn uniformly
from 0 to the number of characters, both ends included, so any part may be empty; prefix, middle
and suffix are tokenised separately; the middle comes last and ends with eos. Unlike there, what is
drawn depends on the seed, the epoch and the piece alone, and nothing is truncated.

Two cuts drawn like this are a third of a piece apart on average: a middle as short as one line is
rare. `line_rate` gives a share of the permuted pieces one whole line for a middle; BigCode's is 0.

Where eos stands. A permuted piece always ends with it: it says that the middle meets the suffix.
A plain piece ends with it only where its document ends: elsewhere the text goes on.

Source: Bavarian et al., arXiv 2207.14255.
"""

from typing import Literal, NamedTuple

import numpy as np

from jaxcoder.fim import psm_prompt, spm_prompt
from jaxcoder.tokenizer import Tokenizer

from .config import FimConfig
from .pieces import RESERVE, character_start

_CUTS = 1  # sets these draws apart from others made with the same seed

Parts = tuple[list[int], list[int], list[int]]


class Example(NamedTuple):
    """What the model is shown of one piece.

    Attributes:
      ids: int32 [n].
      middle: offsets in `ids` of the middle and its eos, (start, stop); (0, 0) if not permuted.
      kind: the order of the parts.
      overflow: it was to be permuted but needed more than the reserve, so it is plain.
    """

    ids: np.ndarray
    middle: tuple[int, int]
    kind: Literal["plain", "psm", "spm"]
    overflow: bool


def make_example(
    ids: np.ndarray,
    key: tuple[int, ...],
    *,
    config: FimConfig,
    tokenizer: Tokenizer,
    ends_document: bool,
    header: int = 0,
) -> Example:
    """Permute a piece, or leave it plain, as the draws of `key` say.

    The result has at most `RESERVE` ids more than the piece. A header stays in front, whole. Bytes
    that are not UTF-8 stay plain.

    Args:
      ids: int32 [n], a piece or a whole document, without special tokens past the header.
      key: (seed, epoch, piece index), integers of zero or more.
      config: rates and where cuts may fall.
      tokenizer: the one that made `ids`.
      ends_document: the piece is the last of its document.
      header: how many ids at the front are a header.
    """
    permuted, reordered, first, second, by_line, line = _draws(key)
    eos = [tokenizer.end_of_text]
    plain = Example(
        np.array([*ids, *(eos if ends_document else [])], np.int32), (0, 0), "plain", False
    )
    body = ids[header:].tolist()
    if not body or not _happens(permuted, config.rate):
        return plain
    if config.cut == "token":
        parts = _cut_tokens(body, (first, second), tokenizer)
    else:
        line_draw = line if _happens(by_line, config.line_rate) else None
        parts = _cut_text(body, (first, second), line_draw, tokenizer)
    if parts is None:
        return plain
    prefix, middle, suffix = parts
    kind = "spm" if _happens(reordered, config.spm_rate) else "psm"
    layout = spm_prompt if kind == "spm" else psm_prompt
    before = [*ids[:header], *layout(prefix, suffix, tokenizer.fim)]
    permutation = np.array([*before, *middle, *eos], np.int32)
    if len(permutation) > len(ids) + RESERVE:
        return plain._replace(overflow=True)
    return Example(permutation, (len(before), len(permutation)), kind, False)


def unpermute(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of the piece that an example's `ids` [n] were made from, without special tokens.

    Raises:
      ValueError: sentinels that do not stand once each, in the order prefix, suffix, middle.
    """
    fim = tokenizer.fim
    tokens = [token for token in np.asarray(ids).tolist() if token != tokenizer.end_of_text]
    sentinels = (fim.prefix, fim.suffix, fim.middle)
    found = [(token, offset) for offset, token in enumerate(tokens) if token in sentinels]
    if not found:
        return tokenizer.decode(tokens)
    if tuple(token for token, _ in found) != sentinels:
        raise ValueError(
            f"ids: sentinels {[token for token, _ in found]}, expected {list(sentinels)}, once "
            "each and in this order; pass one whole example"
        )
    prefix, suffix, middle = (offset for _, offset in found)
    before = tokens[:prefix] + tokens[prefix + 1 : suffix]
    return tokenizer.decode(before + tokens[middle + 1 :] + tokens[suffix + 1 : middle])


def _draws(key: tuple[int, ...]) -> list[int]:
    """Six integers of 64 bits: permute?, which order?, two cuts, one line?, and which line.

    NumPy keeps the values of `SeedSequence` fixed over its releases, not those of `Generator`.
    """
    return np.random.SeedSequence((_CUTS, *key)).generate_state(6, np.uint64).tolist()


def _happens(draw: int, rate: float) -> bool:
    return draw < rate * 2.0**64


def _up_to(draw: int, highest: int) -> int:
    """A uniform integer from 0 to `highest`, included."""
    return draw * (highest + 1) >> 64


def _cut_text(
    ids: list[int], draws: tuple[int, int], line_draw: int | None, tokenizer: Tokenizer
) -> Parts | None:
    """Prefix, middle, suffix of the text, each tokenised by itself; None: it is not text."""
    raw = b"".join(map(tokenizer.token_bytes, ids))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    first, second = sorted(_up_to(draw, len(text)) for draw in draws)
    if line_draw is not None:
        first, second = _line_cuts(text, line_draw) or (first, second)
    parts = text[:first], text[first:second], text[second:]
    prefix, middle, suffix = map(tokenizer.encode, parts)
    return prefix, middle, suffix


def _line_cuts(text: str, draw: int) -> tuple[int, int] | None:
    """From the end of one line to the end of the next, of all lines that end; None: there is none.

    The newline before a line belongs to the middle: tokenizers join it with the indentation.
    """
    ends = [offset for offset, character in enumerate(text) if character == "\n"]
    if len(ends) < 2:
        return None
    line = _up_to(draw, len(ends) - 2)
    return ends[line], ends[line + 1]


def _cut_tokens(ids: list[int], draws: tuple[int, int], tokenizer: Tokenizer) -> Parts:
    """Prefix, middle, suffix of the ids, moved back to where a token starts a character."""
    first, second = sorted(
        character_start(ids, _up_to(draw, len(ids)), tokenizer=tokenizer) for draw in draws
    )
    return ids[:first], ids[first:second], ids[second:]
