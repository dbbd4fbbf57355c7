"""Validation while a run goes on: loss, bits per byte, held-out lines infilled, sample texts.

Everything here is a function of the parameters and the held-out documents; nothing of the run's
state changes.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcoder.config import ModelConfig
from jaxcoder.generator import Generator
from jaxcoder.tokenizer import Tokenizer

from .config import TrainConfig
from .data import Batch, BatchSource
from .token_store import TokenStore, document_ids

_LEAST_LINE = 6
_INFILL_TOKENS = 32
_INFILLS_AT_ONCE = 16
_SAMPLE_TOKENS = 48
_CONTEXT = 1024


class Hole(NamedTuple):
    """One held-out line and what stands around it.

    The line break before it is taken out with it: tokenizers join one with the indentation, so
    that a prefix which ended in it would ask for a line at the margin.
    """

    prefix: str
    middle: str
    suffix: str


class Sample(NamedTuple):
    """A held-out beginning and how the model continues it."""

    prompt: str
    completion: str


class Validation:
    """The held-out part of a store, prepared once and measured at intervals."""

    def __init__(
        self, store: TokenStore, model: ModelConfig, tokenizer: Tokenizer, *, config: TrainConfig
    ) -> None:
        """Choose batches, lines and beginnings; none of them where nothing is held out."""
        self._model, self._tokenizer = model, tokenizer
        documents = np.flatnonzero(store.is_validation)
        # Rows at once as in a part of a step: the memory has room for those.
        parts = config.batch.accumulation
        rows = config.batch.size // parts
        plain = dataclasses.replace(
            config,
            fim=dataclasses.replace(config.fim, rate=0.0),
            batch=dataclasses.replace(config.batch, loss="all", piece_tokens=(), size=rows),
        )
        self._batches: list[Batch] = []
        if len(documents):
            source = BatchSource(store, tokenizer, plain, split="validation")
            count = min(config.loop.eval_batches * parts, -(-source.rows_per_epoch // rows))
            self._batches = [source.batch(number)[0] for number in range(count)]
        # In an order of their own: documents lie in the order of their names.
        draws = np.random.SeedSequence(config.seed).generate_state(len(documents), np.uint64)
        shuffled = documents[np.argsort(draws, kind="stable")]
        texts = _texts(store, shuffled, tokenizer)
        infills = config.loop.eval_infills if config.fim.rate > 0 else 0
        samples = config.loop.eval_samples
        holes = list(_holes(texts, seed=config.seed, count=max(infills, samples)))
        self._holes = holes[:infills]
        self._beginnings = [hole.prefix + hole.middle for hole in holes[:samples]]
        # A short context is shared by what is read and what is written.
        self._infill_tokens = min(_INFILL_TOKENS, model.n_positions // 2)
        self._sample_tokens = min(_SAMPLE_TOKENS, model.n_positions // 2)
        self._token_bytes = np.array(
            [len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)]
        )

    def loss(self, nll_of: Callable[[Batch], tuple[jax.Array, jax.Array]]) -> dict[str, float]:
        """Nats per token and bits per byte over plain held-out text.

        A document's first token, which nothing predicts, is in neither sum; with
        ``batch.documents="joined"`` that is a row's first alone, the others are predicted from the
        document before. The end of a text is in the first sum alone, it has no bytes.

        Args:
          nll_of: a batch -> (sum of negative log-likelihoods in nats, number of tokens).
        """
        nll = tokens = size = 0.0
        for batch in self._batches:
            batch_nll, batch_tokens = nll_of(batch)
            nll, tokens = nll + float(batch_nll), tokens + float(batch_tokens)
            targets = np.asarray(batch.tokens)[:, 1:]
            size += float((self._token_bytes[targets] * np.asarray(batch.loss_mask)).sum())
        if not tokens or not size:
            return {}
        return {"validation_loss": nll / tokens, "bits_per_byte": nll / math.log(2) / size}

    def infill(self, params: dict, *, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Share of held-out lines that greedy infilling returns, blanks at the ends aside.

        What it writes after the line, where it does not end there, does not count.

        `check` is called before every few lines, and may raise to end it.
        """
        if not self._holes:
            return {}
        generator = self._generator(params)
        prompts = [
            generator.infill_prompt(
                hole.prefix, hole.suffix, max_new_tokens=self._infill_tokens
            ).tokens
            for hole in self._holes
        ]
        completions = []
        for first in range(0, len(prompts), _INFILLS_AT_ONCE):
            check()
            some = prompts[first : first + _INFILLS_AT_ONCE]
            completions += generator.generate(some, max_new_tokens=self._infill_tokens)
        right = [
            _is_right(completion.text, hole.middle)
            for completion, hole in zip(completions, self._holes, strict=True)
        ]
        return {"infill_exact_match": sum(right) / len(right), "infill_lines": float(len(right))}

    def samples(self, params: dict) -> list[Sample]:
        """Greedy completions of held-out beginnings."""
        if not self._beginnings:
            return []
        generator = self._generator(params)
        room = self._model.n_positions - self._sample_tokens
        prompts = [self._tokenizer.encode(text)[-room:] for text in self._beginnings]
        completions = generator.generate(prompts, max_new_tokens=self._sample_tokens)
        return [
            Sample(beginning[-400:], completion.text)
            for beginning, completion in zip(self._beginnings, completions, strict=True)
        ]

    def _generator(self, params: dict) -> Generator:
        return Generator(self._model, params, self._tokenizer, dtype=jnp.dtype(jnp.float32))


def _is_right(written: str, middle: str) -> bool:
    """Whether the first line written is the one missing, and stands on a line of its own."""
    line = written.lstrip()
    has_break = "\n" in written[: len(written) - len(line)]
    return has_break and line.partition("\n")[0].rstrip() == middle.strip()


def _texts(store: TokenStore, documents: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    for document in documents:
        header = int(store.header_lengths[document])
        # As bare text its special tokens would be names that the model has never seen.
        yield tokenizer.decode(document_ids(store, int(document))[header:])


def _holes(texts: Iterator[str], *, seed: int, count: int) -> Iterator[Hole]:
    """One line each of the first `count` texts that have one of enough characters."""
    if count == 0:
        return
    found = 0
    for number, text in enumerate(texts):
        # Not splitlines, for which a form feed ends a line too: the hole ends where its line does.
        lines = re.findall(r"[^\n]*\n|[^\n]+", text)
        candidates = [i for i, line in enumerate(lines) if len(line.strip()) >= _LEAST_LINE]
        if len(candidates) < 2:
            continue
        draw = np.random.default_rng((seed, number))
        at = int(draw.choice(candidates[1:]))
        line_before, line = (part.rstrip("\r\n") for part in lines[at - 1 : at + 1])
        prefix, suffix = "".join(lines[: at - 1]) + line_before, "".join(lines[at:])[len(line) :]
        middle = lines[at - 1][len(line_before) :] + line
        yield Hole(prefix[-4 * _CONTEXT :], middle, suffix[: 4 * _CONTEXT])
        found += 1
        if found == count:
            return
