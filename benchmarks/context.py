"""Milliseconds per token against the context in use: cost must follow it, not what is allowed.

``python -m benchmarks.context``

The same weights with 8,192 positions allowed and with 512, decoding up to 256 used positions, in
turn; then, with 8,192 allowed, up to more and more used positions. The decoded stretch ends at the
named context and lies within one cache capacity, which stands beside each figure.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from jaxcoder.cache import capacity_bucket
from jaxcoder.config import ModelConfig
from jaxcoder.model import GPTBigCode

from .decode import measure_ours
from .harness import Measurement, full_shape, interleaved, spread, summarise, write_result


@dataclass(frozen=True)
class Context:
    """Measure the cost of context."""

    contexts: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    """Used positions at the end of the decoded stretch."""
    tokens: int = 32
    """Decoded tokens, the length of the stretch."""
    rounds: int = 5
    out: Path | None = None

    def run(self) -> None:
        """Measure, and print the result as JSON."""
        model, params, _ = full_shape("float32")
        config = dataclasses.replace(model.config, n_positions=512)
        limited = GPTBigCode(config, dtype=model.dtype, param_dtype=model.param_dtype)
        short = params | {"wpe": {"weight": params["wpe"]["weight"][:512]}}
        key = "milliseconds_per_token"
        models = {"allowed 8192": (model, params), "allowed 512": (limited, short)}
        at_256 = {name: self._capacity(256, each.config) for name, (each, _) in models.items()}
        capacities = {used: self._capacity(used, model.config) for used in self.contexts}

        measures = {name: self._measure(*allowed, 256) for name, allowed in models.items()}
        results = interleaved(measures, rounds=self.rounds)
        pair = summarise(results, ours="allowed 8192", others=["allowed 512"])
        curve = {}
        for used, capacity in capacities.items():
            runs = interleaved({str(used): self._measure(model, params, used)}, rounds=3)
            figures = spread([run[key] for run in runs[str(used)]])
            curve[str(used)] = {"capacity": capacity} | figures
        content = {
            "settings": {"tokens": self.tokens},
            "milliseconds_per_token_at_256": {
                name: {"capacity": at_256[name]} | pair[name][key] for name in models
            },
            "ratio_8192_to_512": pair["ratios"]["allowed 8192 / allowed 512"][key],
            "milliseconds_per_token_by_context": curve,
        }
        write_result("context-float32", content, out=self.out)

    def _capacity(self, used: int, config: ModelConfig) -> int:
        capacity = capacity_bucket(used, config.n_positions)
        start = used - self.tokens
        if start < 1 or capacity_bucket(start, config.n_positions) != capacity:
            raise ValueError(
                f"context {used} with {self.tokens} tokens: the stretch begins at {start}, "
                f"expected at least 1 and a cache of {capacity} slots as at its end; choose fewer "
                "--tokens or other --contexts"
            )
        return capacity

    def _measure(self, model: GPTBigCode, params: dict, used: int) -> Callable[[], Measurement]:
        rng = np.random.default_rng(0)
        prompt = rng.integers(0, model.config.vocab_size, used - self.tokens).tolist()
        measure = measure_ours(model, params, [prompt], self.tokens)
        return lambda: {"milliseconds_per_token": 1000 / measure()["tokens_per_second"]}


if __name__ == "__main__":
    tyro.cli(Context).run()
