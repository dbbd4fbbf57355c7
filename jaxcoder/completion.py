"""`Completion`: what the model wrote for one prompt, and how it is put together from tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from .text_stream import TextStream
from .timing import Stopwatch


class Timings(NamedTuple):
    """Where the time went, in seconds, for the group of rows a completion was decoded with."""

    compile: float
    """Tracing and compiling; not part of the other two."""
    prefill: float
    """Running the prompts."""
    decode: float
    """Running the new tokens."""

    def plus(self, phase: Literal["prefill", "decode"], watch: Stopwatch) -> "Timings":
        """These and what `watch` saw: its running time goes to `phase`."""
        compiled = self._replace(compile=self.compile + watch.compile)
        return compiled._replace(**{phase: getattr(self, phase) + watch.run})


@dataclass(frozen=True)
class Completion:
    """What the model wrote for one prompt."""

    text: str
    """Without the end-of-text token, and cut before the stop string."""
    tokens: list[int]
    """New ids, with the ending end-of-text or the token that completed a stop string."""
    logprobs: list[float]
    """Natural-log probability of each token under the raw logits, before any filter."""
    finish_reason: Literal["eos", "stop", "length"]
    """End of text, a stop string, or as many tokens as were asked for."""
    timings: Timings
    """Where the time went."""
    trimmed: tuple[int, int] = (0, 0)
    """Tokens dropped from the start of the prefix and the end of the suffix by `infill`."""


class CompletionBuilder:
    """Collects the tokens of one row and turns them into text; ends at eos or a stop string."""

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        *,
        eos_ids: Sequence[int],
        special_ids: frozenset[int],
        stop: Sequence[str],
    ) -> None:
        self._stream = TextStream(
            lambda token: b"" if token in special_ids else token_bytes(token), stop
        )
        self._eos_ids = eos_ids
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._ended_by_eos = False
        self._untaken = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stream.stopped

    @property
    def token_count(self) -> int:
        """Tokens collected so far."""
        return len(self._tokens)

    def push(self, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Add a chunk: `tokens` int32 [T], -1 after the row's end, and `logprobs` float32 [T]."""
        for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            if token < 0 or self.stopped:
                break
            self._tokens.append(token)
            self._logprobs.append(logprob)
            if token in self._eos_ids:
                self._ended_by_eos = True
            else:
                self._untaken += self._stream.push(token)

    def finish(self) -> None:
        """No more tokens come: what was held back is text now."""
        self._untaken += self._stream.finish()

    def take(self) -> str:
        """The text that has become certain since the last call."""
        piece, self._untaken = self._untaken, ""
        return piece

    def completion(self, timings: Timings) -> Completion:
        """The finished completion; call `finish` first."""
        reason = "stop" if self.stopped else "eos" if self._ended_by_eos else "length"
        return Completion(self._stream.text, self._tokens, self._logprobs, reason, timings)
