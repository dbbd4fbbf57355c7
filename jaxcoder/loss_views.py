"""`TokenLosses` to look at: text on a ground that is the redder the less the model expected it."""

import html
import itertools
import json
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .token_losses import TokenLosses

# Nats at which the ground is fully red: a chance of 1 in 3,000.
_FULL = 8.0
_PALE, _RED = (255, 255, 255), (239, 83, 80)

# Control, format (which turns the direction of text, say) and half of a surrogate pair.
_COMMANDING = ("Cc", "Cf", "Cs")

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Loss of each token</title>
{body}
</html>
"""
_BODY = """<div style="font: 14px/1.5 monospace; color: #111; background: #fff; padding: 1em">
<p>{summary}; white is 0 nats, red {full:g} or more. Point at a token for its loss.</p>
<pre style="white-space: pre-wrap">{spans}</pre>
</div>"""


class _Span(NamedTuple):
    """Characters that end together, and the loss of the tokens that they are made of."""

    text: str
    loss: float
    """Nats; NaN where there is none."""


def to_html(losses: TokenLosses, *, is_page: bool = True) -> str:
    """The text as HTML, each token coloured by its loss, which a pointer shows.

    Args:
      losses: of `token_losses`.
      is_page: a whole page; else the part to put into one, as a notebook's output is.
    """
    spans = "".join(_html_span(span) for span in _spans(losses))
    body = _BODY.format(summary=html.escape(_summary(losses)), full=_FULL, spans=spans)
    return _PAGE.format(body=body) if is_page else body


def to_terminal(losses: TokenLosses) -> str:
    """The text with 24-bit ANSI colours, and a last line with mean and bits per byte."""
    lines = []
    end = _Span("\n", 0.0)  # of the text's last line
    for span, following in itertools.pairwise([*_spans(losses), end]):
        red, green, blue = _colour(span.loss)
        colour = f"\x1b[38;2;17;17;17;48;2;{red};{green};{blue}m"
        # A coloured line break would paint the rest of the line.
        shown = _shown(span.text, following.text[0])
        parts = [f"{colour}{part}\x1b[0m" if part else "" for part in shown]
        lines.append("\n".join(parts))
    return "".join(lines) + f"\n{_summary(losses)}; white is 0 nats, red {_FULL:g} or more\n"


def to_table(losses: TokenLosses) -> str:
    """A line a token: its loss in nats, its characters as JSON spells them; for other programs."""
    rows = zip(losses.losses, losses.texts, strict=True)
    return "".join(f"{loss:.4f}\t{json.dumps(text, ensure_ascii=False)}\n" for loss, text in rows)


def to_json(losses: TokenLosses) -> str:
    """A JSON object with tokens, texts, losses (the first null), total and bits_per_byte."""
    numbers = [None if np.isnan(loss) else loss for loss in losses.losses.tolist()]
    bits = losses.bits_per_byte
    fields = {
        "tokens": losses.tokens,
        "texts": losses.texts,
        "losses": numbers,
        "total": losses.total,
        "bits_per_byte": None if np.isnan(bits) else bits,
    }
    return json.dumps(fields) + "\n"


def _spans(losses: TokenLosses) -> Iterator[_Span]:
    """Tokens that end amid a character are shown with the one that ends it."""
    held = 0.0
    for text, loss in zip(losses.texts, losses.losses.tolist(), strict=True):
        if text:
            yield _Span(text, held + loss)
            held = 0.0
        else:
            held += loss


def _html_span(span: _Span) -> str:
    colour = "#{:02x}{:02x}{:02x}".format(*_colour(span.loss))
    told = "nothing before it" if np.isnan(span.loss) else f"{span.loss:.2f} nats"
    title = html.escape(f"{told}: {span.text!r}")
    return f'<span style="background: {colour}" title="{title}">{html.escape(span.text)}</span>'


def _colour(loss: float) -> tuple[int, int, int]:
    share = 0.0 if np.isnan(loss) else min(max(loss / _FULL, 0.0), 1.0)
    red, green, blue = (
        round(pale + share * (full - pale)) for pale, full in zip(_PALE, _RED, strict=True)
    )
    return red, green, blue


def _shown(text: str, after: str) -> list[str]:
    """The lines of `text`; what may command a terminal, as U+FFFD.

    `after` is the character that follows: a carriage return before a line break belongs to that.
    """
    pairs = itertools.pairwise(text + after)
    kept = "".join(c for c, following in pairs if c + following != "\r\n")
    return "".join("\ufffd" if _commands(c) else c for c in kept).split("\n")


def _commands(c: str) -> bool:
    """Whether a terminal may do something else with the character than show it."""
    return c not in "\n\t" and unicodedata.category(c) in _COMMANDING


def _summary(losses: TokenLosses) -> str:
    """Count and means; a single token, which nothing predicts, has no mean."""
    count = len(losses.tokens)
    if not losses.predicted_bytes:
        return f"{count} token" + "s" * (count != 1)
    return (
        f"{count} tokens, {losses.total / (count - 1):.3f} nats each, "
        f"{losses.bits_per_byte:.3f} bits per byte"
    )
