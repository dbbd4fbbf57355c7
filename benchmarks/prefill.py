"""Tokens per second of reading a prompt at the 164M shape, ours and transformers' in turn.

``python -m benchmarks.prefill [--dtype float32] [--length 1024]``

Both compute the last position's logits alone, and keep the key/value cache.
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
class Prefill:
    """Measure prefill."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    length: int = 1024
    """Prompt tokens."""
    rounds: int = 5
    torch_device: str | None = None
    """PyTorch's device; cuda where both JAX and PyTorch can use one, else cpu."""
    out: Path | None = None

    def run(self) -> None:
        """Measure, and print the result as JSON."""
        model, params, tensors = full_shape(self.dtype)
        prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, self.length)
        measures = {"jaxcoder": _measure_ours(model, params, prompt.tolist())}
        other = torch_model(model.config, tensors, self.dtype, device=self.torch_device)
        if other is not None:
            measures["transformers"] = _measure_transformers(other, prompt)
        results = interleaved(measures, rounds=self.rounds)
        summary = summarise(results, ours="jaxcoder", others=["transformers"])
        settings = {
            "dtype": self.dtype,
            "length": self.length,
            "torch_device": None if other is None else str(other.device),
        }
        name = f"prefill-{self.dtype}-{self.length}"
        write_result(name, {"settings": settings} | summary, out=self.out)


def _measure_ours(model: GPTBigCode, params: dict, prompt: list[int]) -> Callable[[], Measurement]:
    def measure() -> Measurement:
        start = time.perf_counter()
        chunks = generate_chunks(
            model,
            params,
            [prompt],
            sampling_params(1),
            max_new_tokens=1,
            eos_ids=(),
            stopped=np.zeros(1, bool),
        )
        next(chunks)
        return {"tokens_per_second": len(prompt) / (time.perf_counter() - start)}

    return measure


def _measure_transformers(model: Any, prompt: np.ndarray) -> Callable[[], Measurement]:
    import torch

    ids = torch.tensor(prompt[None], device=model.device)

    def measure() -> Measurement:
        start = time.perf_counter()
        with torch.inference_mode():
            model(ids, use_cache=True, logits_to_keep=1)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return {"tokens_per_second": len(prompt) / (time.perf_counter() - start)}

    return measure


if __name__ == "__main__":
    tyro.cli(Prefill).run()
