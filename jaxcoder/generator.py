"""`Generator`: text in, text out; the public face of the package."""

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from . import fim
from .arguments import (
    DrawingArguments,
    Prompt,
    check_count,
    check_ids,
    check_stop,
    check_token_rows,
    is_single_prompt,
)
from .checkpoint import load_checkpoint
from .completion import Completion
from .config import ModelConfig
from .devices import announce, default_device, resolve_dtype
from .errors import TokenizerError
from .generate import check_request, length_bucket
from .hub import resolve
from .model import GPTBigCode
from .row_decoder import RowDecoder
from .sampling import SamplingParams, sampling_params
from .tokenizer import Tokenizer

Array = jax.Array


class InfillPrompt(NamedTuple):
    """A fill-in-the-middle prompt and what had to be left out of it."""

    tokens: list[int]
    """Ids, sentinels among them."""
    trimmed: tuple[int, int]
    """Tokens dropped from the start of the prefix and the end of the suffix."""


class Generator:
    """A model with its tokenizer. Made by `from_pretrained`.

    Attributes:
      config: the model's shape.
      tokenizer: ``encode(text, *, special=False)`` and ``decode(ids, *, skip_special=True)``.
      model: the Flax module, for `model.apply({"params": params}, ...)`.
      params: nested dict of arrays; its layout is described in hf_names.py and may change.
    """

    def __init__(
        self, config: ModelConfig, params: dict, tokenizer: Tokenizer, *, dtype: jnp.dtype
    ) -> None:
        self.config = config
        self.params = params
        self.tokenizer = tokenizer
        self.model = GPTBigCode(config, dtype=dtype, param_dtype=dtype)
        self._warned_of_sentinels = False

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path | None = None,
        *,
        dtype: str = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "Generator":
        """Load a checkpoint in Hugging Face's layout.

        Args:
          path_or_repo: a local folder, or a Hub id such as "bigcode/tiny_starcoder_py"; None is
            the demo model inside the package.
          dtype: "float32", "bfloat16", or "auto": what suits the device.
          revision: a Hub branch, tag or commit.
          local_files_only: read the Hub's cache and never the network.

        Raises:
          CheckpointError, ConfigError, TokenizerError: see errors.py.
          ValueError: another argument out of its range.
        """
        device = default_device()
        compute = resolve_dtype(dtype, device)
        folder = resolve(
            embedded_demo() if path_or_repo is None else path_or_repo,
            revision=revision,
            local_files_only=local_files_only,
        )
        # The small file first: a broken tokenizer should not cost the time of loading weights.
        config = ModelConfig.from_file(folder / "config.json")
        tokenizer_file = folder / "tokenizer.json"
        if not tokenizer_file.exists():
            raise TokenizerError(
                f"{tokenizer_file}: no such file; expected the model's tokenizer beside its weights"
            )
        tokenizer = Tokenizer.from_file(
            tokenizer_file, vocab_size=config.vocab_size, model_type=config.model_type
        )
        config, params = load_checkpoint(folder, dtype=compute.name)
        announce(device, compute.name)
        return cls(config, params, tokenizer, dtype=compute)

    # To a type checker, a call that gives n has an n above 1.
    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        n: Literal[1] = 1,
        special: bool = False,
        **others: Unpack[DrawingArguments],
    ) -> Completion: ...

    @overload
    def generate(
        self, prompt: Prompt, *, n: int, special: bool = False, **others: Unpack[DrawingArguments]
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        *,
        n: Literal[1] = 1,
        special: bool = False,
        **others: Unpack[DrawingArguments],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        *,
        n: int,
        special: bool = False,
        **others: Unpack[DrawingArguments],
    ) -> list[list[Completion]]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        n: int = 1,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        special: bool = False,
        progress: bool = False,
    ) -> Completion | list[Completion] | list[list[Completion]]:
        """Continue a prompt, or each of a list of prompts.

        Args:
          prompt: text or ids; an empty one starts from ``<|endoftext|>``. A list of prompts gives
            a list in the same order.
          max_new_tokens: at most this many; prompt and new tokens must fit n_positions.
          temperature, top_k, top_p, repetition_penalty, seed: see `sampling.sampling_params`.
          n: samples per prompt; above 1 each prompt gives a list, and temperature must not be 0.
          stop: strings at which the text ends, without them; at most 64 of 1,000 characters.
          special: read special tokens that the prompt spells; else they are plain text.
          progress: show a bar over completions, on standard error.

        Returns:
          A `Completion`; a list of n with n > 1; a list of either for a list of prompts.

        Raises:
          ValueError: an argument out of its range, or a prompt that does not fit.
        """
        is_single = is_single_prompt(prompt)
        prompts = []
        # Not a comprehension: up to Python 3.11 it would be a frame of its own to a warning.
        for each in [prompt] if is_single else prompt:
            # pyrefly: ignore[bad-argument-type]: `is_single` tells a prompt from a list of them
            prompts.append(self._ids(each, special))
        check_request(self.config, prompts, max_new_tokens)
        n = check_count("n", n, least=1)  # a small NumPy integer would wrap around in what follows
        sampling = _sampling(len(prompts), n, temperature, top_k, top_p, repetition_penalty, seed)
        rows = [ids for ids in prompts for _ in range(n)]
        completions = self._rows.complete(
            rows, sampling, max_new_tokens, check_stop(stop), progress=progress
        )
        if n == 1:
            return completions[0] if is_single else completions
        grouped = [completions[i : i + n] for i in range(0, len(completions), n)]
        return grouped[0] if is_single else grouped

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        special: bool = False,
    ) -> Iterator[str]:
        """Yield the text of `generate` in pieces as it is decoded.

        Nothing yielded is ever taken back: half a character, or what may become a stop string, is
        held until it is decided.

        Args:
          prompt: one text or one list of ids.
          max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed, stop, special: as in
            `generate`.

        Raises:
          ValueError: as in `generate`, when `stream` is called; or a list of prompts.
        """
        # Arguments are checked here, when `stream` is called, and not at the first `next`.
        if not is_single_prompt(prompt):
            raise ValueError(
                "stream takes one prompt; pass a list of prompts to generate, and for no text "
                f'"" or [{self.tokenizer.end_of_text}], the end of text'
            )
        ids = self._ids(prompt, special)
        sampling = _sampling(1, 1, temperature, top_k, top_p, repetition_penalty, seed)
        stops = check_stop(stop)
        check_request(self.config, [ids], max_new_tokens)
        return self._rows.stream(ids, sampling, max_new_tokens, stops)

    @overload
    def infill(
        self,
        prefix: str,
        suffix: str,
        *,
        mode: Literal["psm", "spm"] = "psm",
        n: Literal[1] = 1,
        **others: Unpack[DrawingArguments],
    ) -> Completion: ...

    @overload
    def infill(
        self,
        prefix: str,
        suffix: str,
        *,
        mode: Literal["psm", "spm"] = "psm",
        n: int,
        **others: Unpack[DrawingArguments],
    ) -> list[Completion]: ...

    def infill(
        self,
        prefix: str,
        suffix: str,
        *,
        mode: Literal["psm", "spm"] = "psm",
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        n: int = 1,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        progress: bool = False,
    ) -> Completion | list[Completion]:
        """Write the middle between `prefix` and `suffix`.

        Args:
          prefix, suffix: the text around the hole. When they exceed the context they are trimmed
            at their far ends; `Completion.trimmed` says by how many tokens.
          mode: order of the pieces, "psm" (prefix first) or "spm" (suffix first).
          max_new_tokens, temperature, top_k, top_p, repetition_penalty, n, seed, stop, progress: as
            in `generate`.

        Returns:
          A `Completion`, whose text is the middle alone; a list of n with n > 1.

        Raises:
          TokenizerError: the model has no fill-in-the-middle tokens.
          ValueError: an argument out of its range.
        """
        asked = self.infill_prompt(prefix, suffix, mode=mode, max_new_tokens=max_new_tokens)
        n = check_count("n", n, least=1)
        sampling = _sampling(1, n, temperature, top_k, top_p, repetition_penalty, seed)
        rows = [asked.tokens] * n
        completions = self._rows.complete(
            rows, sampling, max_new_tokens, check_stop(stop), progress=progress
        )
        completions = [dataclasses.replace(c, trimmed=asked.trimmed) for c in completions]
        return completions if n > 1 else completions[0]

    def infill_prompt(
        self,
        prefix: str,
        suffix: str,
        *,
        mode: Literal["psm", "spm"] = "psm",
        max_new_tokens: int = 128,
    ) -> InfillPrompt:
        """The ids that `infill` would continue, for use with `stream`.

        Args:
          prefix, suffix, mode, max_new_tokens: as in `infill`; room is kept for the new tokens.

        Raises:
          TokenizerError, ValueError: as in `infill`.
        """
        if mode not in ("psm", "spm"):
            raise ValueError(f"mode is {mode!r}, expected 'psm' or 'spm'")
        for name, text in (("prefix", prefix), ("suffix", suffix)):
            if not isinstance(text, str):
                raise ValueError(f"{name} is {type(text).__name__}, expected str")
        sentinels = 3
        budget = (
            self.config.n_positions
            - sentinels
            - check_count("max_new_tokens", max_new_tokens, least=0)
        )
        if budget < 0:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}; with {sentinels} sentinels it exceeds the "
                f"model's {self.config.n_positions} positions; lower max_new_tokens"
            )
        before, after, trimmed = fim.trim_around_hole(
            self.tokenizer.encode(prefix), self.tokenizer.encode(suffix), budget
        )
        layout = fim.psm_prompt if mode == "psm" else fim.spm_prompt
        return InfillPrompt(layout(before, after, self.tokenizer.fim), trimmed)

    def logits(
        self,
        tokens: np.ndarray | Sequence[Sequence[int]],
        lengths: Sequence[int] | np.ndarray | None = None,
    ) -> Array:
        """Next-token logits at every position, in one uncached forward pass.

        Args:
          tokens: integers [B, T], right-padded when rows differ in length.
          lengths: [B] real tokens of each row, by default T.

        Returns:
          float32 [B, T, V]; NaN at positions at or beyond a row's length.

        Raises:
          ValueError: wrong shape, T above n_positions, an id or a length out of range.
        """
        rows, counts = check_token_rows(tokens, lengths, self.config)
        check_request(
            self.config, [row[:count] for row, count in zip(rows, counts, strict=True)], 0
        )
        batch, length = rows.shape
        bucket = length_bucket(length)  # a multiple of the largest bucket above it
        padded = min(-(-length // bucket) * bucket, self.config.n_positions)
        ids = np.zeros((batch, padded), np.int32)
        for row, count in enumerate(counts):
            ids[row, :count] = rows[row, :count]
        return _forward(self.model, self.params, ids, counts.astype(np.int32))[:, :length]

    def _ids(self, prompt: Prompt, special: bool) -> list[int]:
        if not isinstance(prompt, str):
            ids = check_ids(prompt)
        else:
            spelled = [] if special else self.tokenizer.sentinels_in(prompt)
            if spelled and not self._warned_of_sentinels:
                self._warned_of_sentinels = True
                warnings.warn(
                    f"the prompt spells {spelled[0]!r}, which is read as plain text; "
                    "pass special=True to read special tokens, or use .infill(prefix, suffix)",
                    stacklevel=3,
                )
            ids = self.tokenizer.encode(prompt, special=special)
        return ids or [self.tokenizer.end_of_text]

    @property
    def _rows(self) -> RowDecoder:
        return RowDecoder(self.model, self.params, self.tokenizer)


def embedded_demo() -> Path:
    """The folder of the demo model inside the package; its README.md is the model's card."""
    return Path(__file__).parent / "demo"


@functools.partial(jax.jit, static_argnums=0)
def _forward(model: GPTBigCode, params: dict, tokens: Array, counts: Array) -> Array:
    logits, _ = model.apply({"params": params}, tokens)
    is_real = jnp.arange(tokens.shape[1])[None, :] < counts[:, None]
    return jnp.where(is_real[:, :, None], logits, jnp.nan)


def _sampling(
    prompts: int,
    n: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float,
    seed: int,
) -> SamplingParams:
    """Parameters of n samples of each of `prompts` prompts, a prompt's samples side by side."""
    if n > 1 and temperature == 0:
        raise ValueError(
            f"n is {n} with temperature 0, which would give {n} equal completions; "
            "set a temperature above 0"
        )
    return sampling_params(
        prompts * n,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        samples=np.tile(np.arange(n), prompts),
    )
