"""Tokens per second and peak memory of a training step at the 164M shape, ours and PyTorch's.

``python -m benchmarks.train_step [--dtype float32] [--rows 1] [--length 1024]``

Both sides: the same weights and tokens, no dropout, float32 master weights, cross-entropy over all
positions, clipping, AdamW with the decay on matrices alone. bfloat16 is autocast on their side.
Peak memory is that of a process of its own which takes two steps, its libraries and the weights on
the way in included.
"""

import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxcoder.config import ModelConfig
from jaxcoder.model import GPTBigCode
from train.config import OptimizerConfig
from train.data import Batch
from train.step import StepConfig, init_state, train_step

from .harness import Measurement, full_shape, interleaved, summarise, torch_model, write_result

_OPTIMIZER = OptimizerConfig()
_KILOBYTE = 1024


@dataclass(frozen=True)
class TrainStep:
    """Measure a training step."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    rows: int = 1
    length: int = 1024
    """Tokens of a row."""
    rounds: int = 5
    remat: bool = False
    """Compute our blocks again in the backward pass; PyTorch keeps all activations."""
    memory: bool = True
    """Measure the peak memory too, each side in a process of its own."""
    only: Literal["jaxcoder", "transformers"] | None = None
    """Take two steps of one side and print the peak memory of this process; what --memory runs."""
    out: Path | None = None

    def run(self) -> None:
        """Measure, and print the result as JSON."""
        if self.only:
            step = self._ours() if self.only == "jaxcoder" else self._theirs()
            if step is not None:
                step()
                step()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILOBYTE
            print(json.dumps({"peak_bytes": None if step is None else peak}))
            return
        memory = self._memory() if self.memory else {}
        measures = {"jaxcoder": self._ours()}
        theirs = self._theirs()
        if theirs is not None:
            measures["transformers"] = theirs
        results = interleaved(measures, rounds=self.rounds)
        summary = summarise(results, ours="jaxcoder", others=["transformers"])
        settings = {name: getattr(self, name) for name in ("dtype", "rows", "length", "remat")}
        name = f"train-step-{self.dtype}-{self.rows}x{self.length}"
        content = {"settings": settings, "peak_bytes": memory} | summary
        write_result(name + ("-remat" if self.remat else ""), content, out=self.out)

    def _memory(self) -> dict[str, int | None]:
        peaks = {}
        for side in ("jaxcoder", "transformers"):
            command = [sys.executable, "-m", "benchmarks.train_step", "--only", side]
            command += ["--dtype", self.dtype, "--rows", str(self.rows)]
            command += ["--length", str(self.length), *(["--remat"] if self.remat else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[side] = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
            print(f"peak memory: {side}: {peaks[side]}", file=sys.stderr)
        return peaks

    def _tokens(self, config: ModelConfig) -> np.ndarray:
        shape = (self.rows, self.length + 1)
        return np.random.default_rng(0).integers(0, config.vocab_size, shape, dtype=np.int32)

    def _ours(self) -> Callable[[], Measurement]:
        model, params, tensors = full_shape("float32")
        del tensors
        model = GPTBigCode(
            _without_dropout(model.config), dtype=jnp.dtype(self.dtype), remat=self.remat
        )
        settings = StepConfig(model=model, optimizer=_OPTIMIZER, steps=1000)
        tokens = self._tokens(model.config)
        batch = Batch(
            tokens,
            np.ones_like(tokens),
            np.tile(np.arange(tokens.shape[1], dtype=np.int32), (self.rows, 1)),
            np.ones((self.rows, self.length), np.float32),
        )
        state = init_state(params, config=settings)
        del params

        def measure() -> Measurement:
            nonlocal state
            start = time.perf_counter()
            state, metrics = train_step(state, batch, config=settings)
            jax.block_until_ready((state, metrics))
            return {"tokens_per_second": self.rows * self.length / (time.perf_counter() - start)}

        return measure

    def _theirs(self) -> Callable[[], Measurement] | None:
        _, params, tensors = full_shape("float32")
        del params
        config = _without_dropout(ModelConfig.tiny_starcoder())
        model = torch_model(config, tensors, "float32", device="cpu")
        if model is None:
            return None
        del tensors
        import torch

        model.train()
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
        tokens = torch.from_numpy(self._tokens(config)).long()

        def measure() -> Measurement:
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
                logits = model(tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), tokens[:, 1:].flatten()
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), _OPTIMIZER.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            return {"tokens_per_second": self.rows * self.length / (time.perf_counter() - start)}

        return measure


def _without_dropout(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


if __name__ == "__main__":
    tyro.cli(TrainStep).run()
