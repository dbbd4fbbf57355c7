"""`RowDecoder`: rows of token ids in, completions out; chunk by chunk, in groups of rows."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tqdm.auto import tqdm

from .completion import Completion, CompletionBuilder, Timings
from .generate import generate_chunks
from .model import GPTBigCode
from .sampling import SamplingParams
from .timing import Stopwatch
from .tokenizer import Tokenizer

ROWS_AT_ONCE = 16
"""Rows decoded together; a longer list of prompts is worked off in groups of similar length."""


@dataclass(frozen=True)
class RowDecoder:
    """Runs a model on rows whose arguments have been checked."""

    model: GPTBigCode
    params: dict
    tokenizer: Tokenizer

    def complete(
        self,
        rows: Sequence[Sequence[int]],
        sampling: SamplingParams,
        max_new_tokens: int,
        stops: Sequence[str],
        *,
        progress: bool,
    ) -> list[Completion]:
        """The completions of `rows`, in their order; `sampling` has an entry for each."""
        by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        completions: dict[int, Completion] = {}
        with tqdm(total=len(rows), unit=" completions", disable=not progress) as bar:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                group = by_length[start : start + ROWS_AT_ONCE]
                builders = [self._builder(stops) for _ in group]
                group_sampling = SamplingParams(*(field[group] for field in sampling))
                prompts = [rows[row] for row in group]
                for timings in self._decode(prompts, group_sampling, max_new_tokens, builders):
                    spent = timings
                    bar.set_postfix(tokens=sum(builder.token_count for builder in builders))
                bar.update(len(group))
                for row, builder in zip(group, builders, strict=True):
                    completions[row] = builder.completion(spent)
        return [completions[row] for row in range(len(rows))]

    def stream(
        self,
        row: Sequence[int],
        sampling: SamplingParams,
        max_new_tokens: int,
        stops: Sequence[str],
    ) -> Iterator[str]:
        """The text of one row's completion, piece by piece."""
        builder = self._builder(stops)
        for _ in self._decode([row], sampling, max_new_tokens, [builder]):
            if piece := builder.take():
                yield piece

    def _builder(self, stops: Sequence[str]) -> CompletionBuilder:
        return CompletionBuilder(
            self.tokenizer.token_bytes,
            eos_ids=self.model.config.eos_token_ids,
            special_ids=self.tokenizer.special_ids,
            stop=stops,
        )

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        max_new_tokens: int,
        builders: Sequence[CompletionBuilder],
    ) -> Iterator[Timings]:
        """Feed each row's builder chunk by chunk; yields the time spent so far after each."""
        stopped = np.zeros(len(prompts), bool)
        chunks = generate_chunks(
            self.model,
            self.params,
            prompts,
            sampling,
            max_new_tokens=max_new_tokens,
            eos_ids=self.model.config.eos_token_ids,
            stopped=stopped,
        )
        timings = Timings(compile=0.0, prefill=0.0, decode=0.0)
        first: Literal["prefill"] = "prefill"
        later: Literal["decode"] = "decode"
        for phase in itertools.chain([first], itertools.repeat(later)):
            # Timed around the call alone: between two chunks the time is the caller's.
            with Stopwatch() as watch:
                chunk = next(chunks, None)
            timings = timings.plus(phase, watch)
            if chunk is None:
                break
            for row, builder in enumerate(builders):
                builder.push(chunk.tokens[row], chunk.logprobs[row])
                stopped[row] = builder.stopped
            yield timings
        for builder in builders:
            builder.finish()
        yield timings
