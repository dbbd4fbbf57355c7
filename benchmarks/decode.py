"""Tokens per second of greedy decoding at the 164M shape, ours and transformers' in turn.

``python -m benchmarks.decode [--dtype float32] [--prompt 256] [--tokens 128] [--batch 1]``

Both ignore end-of-text and start from the same random prompt. Decoding is the time of a long
generation less that of a one-token generation, so that prefill counts on neither side.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from jaxcoder.generate import generate_chunks
from jaxcoder.model import GPTBigCode
from jaxcoder.sampling import sampling_params

from .harness import Measurement, full_shape, interleaved, summarise, torch_model, write_result


@dataclass(frozen=True)
class Decode:
    """Measure decoding."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    prompt: int = 256
    """Prompt tokens."""
    tokens: int = 128
    """New tokens."""
    batch: int = 1
    rounds: int = 5
    torch_device: str | None = None
    """PyTorch's device; cuda where both JAX and PyTorch can use one, else cpu."""
    out: Path | None = None

    def run(self) -> None:
        """Measure, and print the result as JSON."""
        model, params, tensors = full_shape(self.dtype)
        rng = np.random.default_rng(0)
        prompts = rng.integers(0, model.config.vocab_size, (self.batch, self.prompt)).tolist()
        measures = {"jaxcoder": measure_ours(model, params, prompts, self.tokens)}
        other = torch_model(model.config, tensors, self.dtype, device=self.torch_device)
        if other is not None:
            measures["transformers"] = measure_transformers(other, prompts, self.tokens)
        results = interleaved(measures, rounds=self.rounds)
        settings = {
            "dtype": self.dtype,
            "prompt": self.prompt,
            "tokens": self.tokens,
            "batch": self.batch,
            "torch_device": None if other is None else str(other.device),
        }
        summary = summarise(results, ours="jaxcoder", others=["transformers"])
        name = f"decode-{self.dtype}-batch{self.batch}"
        write_result(name, {"settings": settings} | summary, out=self.out)


def measure_ours(
    model: GPTBigCode, params: dict, prompts: list[list[int]], tokens: int
) -> Callable[[], Measurement]:
    """A function that decodes once and returns tokens per second over all rows."""

    def measure() -> Measurement:
        chunks = generate_chunks(
            model,
            params,
            prompts,
            sampling_params(len(prompts)),
            max_new_tokens=tokens,
            eos_ids=(),
            stopped=np.zeros(len(prompts), bool),
        )
        next(chunks)
        start = time.perf_counter()
        emitted = sum(int((chunk.tokens >= 0).sum()) for chunk in chunks)
        assert emitted == tokens * len(prompts)
        # The last token is drawn and not fed back: one forward pass fewer than tokens.
        return {"tokens_per_second": (tokens - 1) * len(prompts) / (time.perf_counter() - start)}

    return measure


def measure_transformers(
    model: Any, prompts: list[list[int]], tokens: int
) -> Callable[[], Measurement]:
    """The same for transformers' `generate`."""
    import torch

    ids = torch.tensor(prompts, device=model.device)

    def generate(count: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        assert output.shape[1] == ids.shape[1] + count
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def measure() -> Measurement:
        seconds = generate(tokens) - generate(1)
        return {"tokens_per_second": (tokens - 1) * len(prompts) / seconds}

    return measure


if __name__ == "__main__":
    tyro.cli(Decode).run()
