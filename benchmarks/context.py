"""Milliseconds per token against the context in use: cost must follow it, not what is allowed.

``python -m benchmarks.context``

The same weights with 8,192 positions allowed and with 512, decoding around 256 used positions, in
turn; then, with 8,192 allowed, around more and more used positions.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from jaxcoder.model import GPTBigCode

from .decode import measure_ours
from .harness import Measurement, full_shape, interleaved, spread, write_result


@dataclass(frozen=True)
class Context:
    """Measure the cost of context."""

    contexts: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    """Used positions in the middle of the decoded stretch."""
    tokens: int = 32
    rounds: int = 5
    out: Path | None = None

    def run(self) -> None:
        model, params, _ = full_shape("float32")
        config = dataclasses.replace(model.config, n_positions=512)
        limited = GPTBigCode(config, dtype=model.dtype, param_dtype=model.param_dtype)
        short = params | {"wpe": {"weight": params["wpe"]["weight"][:512]}}
        measures = {
            "allowed 8192": self._measure(model, params, 256),
            "allowed 512": self._measure(limited, short, 256),
        }
        pair = interleaved(measures, rounds=self.rounds)
        key = "milliseconds_per_token"
        ratios = [
            a[key] / b[key] for a, b in zip(pair["allowed 8192"], pair["allowed 512"], strict=True)
        ]
        curve = {}
        for used in self.contexts:
            runs = interleaved({str(used): self._measure(model, params, used)}, rounds=3)
            curve[str(used)] = spread([run[key] for run in runs[str(used)]])
        content = {
            "milliseconds_per_token_at_256": {
                name: spread([run[key] for run in runs]) for name, runs in pair.items()
            },
            "ratio_8192_to_512": spread(ratios),
            "milliseconds_per_token_by_context": curve,
        }
        write_result("context-float32", content, out=self.out)

    def _measure(self, model: GPTBigCode, params: dict, used: int) -> Callable[[], Measurement]:
        rng = np.random.default_rng(0)
        prompt = rng.integers(0, model.config.vocab_size, used - self.tokens // 2).tolist()
        measure = measure_ours(model, params, [prompt], self.tokens)
        return lambda: {"milliseconds_per_token": 1000 / measure()["tokens_per_second"]}


if __name__ == "__main__":
    tyro.cli(Context).run()
