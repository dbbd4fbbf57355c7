"""Tokens per second and peak memory of a training step at the 164M shape, ours and PyTorch's.

``python -m benchmarks.train_step [--dtype float32] [--rows 1] [--length 1024]``

Both sides: the same weights and tokens, no dropout, float32 master weights, cross-entropy over all
positions, clipping, AdamW with the decay on matrices alone. bfloat16 is autocast on their side.
Peak memory is that of a process of its own which reads the weights and tokens from files and takes
two steps, its libraries included: one side's process imports nothing of the other's.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from train.config import OptimizerConfig

from .harness import (
    Measurement,
    full_shape,
    interleaved,
    summarise,
    torch_model_of,
    write_result,
)

_OPTIMIZER = OptimizerConfig()
_KILOBYTE = 1024
_CONFIG, _TENSORS, _TOKENS = "config.json", "tensors.npz", "tokens.npy"


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
    inputs: Path | None = None
    """Folder of the weights and tokens to read, for --only."""
    out: Path | None = None

    def run(self) -> None:
        """Measure, and print the result as JSON.

        Raises:
          ValueError: --only without --inputs, or the other way round.
        """
        if (self.only is None) != (self.inputs is None):
            raise ValueError(
                f"only is {self.only} and inputs is {self.inputs}, expected both or neither; "
                "leave both out to measure"
            )
        if self.inputs is not None:
            print(json.dumps({"peak_bytes": self._peak(self.inputs)}))
            return
        with tempfile.TemporaryDirectory() as folder:
            self._write_inputs(Path(folder))
            self._compare(Path(folder))

    def _compare(self, inputs: Path) -> None:
        memory = self._peaks(inputs) if self.memory else {}
        steps = {"jaxcoder": self._ours(inputs), "transformers": self._theirs(inputs)}
        measures = {name: self._rate(step) for name, step in steps.items() if step is not None}
        results = interleaved(measures, rounds=self.rounds)
        summary = summarise(results, ours="jaxcoder", others=["transformers"])
        settings = {name: getattr(self, name) for name in ("dtype", "rows", "length", "remat")}
        name = f"train-step-{self.dtype}-{self.rows}x{self.length}"
        content = {"settings": settings, "peak_bytes": memory} | summary
        write_result(name + ("-remat" if self.remat else ""), content, out=self.out)

    def _write_inputs(self, folder: Path) -> None:
        """The model without dropout as Hugging Face names it, and the tokens of the batch."""
        model, _, tensors = full_shape("float32")
        dropout = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
        (folder / _CONFIG).write_text(json.dumps(model.config.to_hf_config() | dropout))
        np.savez(folder / _TENSORS, **tensors)
        shape = (self.rows, self.length + 1)
        rng = np.random.default_rng(0)
        np.save(folder / _TOKENS, rng.integers(0, model.config.vocab_size, shape, dtype=np.int32))

    def _peaks(self, inputs: Path) -> dict[str, int | None]:
        peaks = {}
        for side in ("jaxcoder", "transformers"):
            command = [sys.executable, "-m", "benchmarks.train_step", "--only", side]
            command += ["--inputs", str(inputs), "--dtype", self.dtype]
            command += ["--remat"] if self.remat else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[side] = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
            print(f"peak memory: {side}: {peaks[side]}", file=sys.stderr)
        return peaks

    def _peak(self, inputs: Path) -> int | None:
        """Bytes that this process held at most, after two steps of one side; None: it is absent."""
        step = self._ours(inputs) if self.only == "jaxcoder" else self._theirs(inputs)
        if step is None:
            return None
        step()
        step()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILOBYTE

    def _rate(self, step: Callable[[], None]) -> Callable[[], Measurement]:
        def measure() -> Measurement:
            start = time.perf_counter()
            step()
            return {"tokens_per_second": self.rows * self.length / (time.perf_counter() - start)}

        return measure

    def _ours(self, inputs: Path) -> Callable[[], None]:
        """A function that takes a step and waits for its end."""
        import jax
        import jax.numpy as jnp

        from jaxcoder.config import ModelConfig
        from jaxcoder.hf_names import params_from_hf
        from jaxcoder.model import GPTBigCode
        from train.data import Batch
        from train.step import StepConfig, init_state, train_step

        config = ModelConfig.from_file(inputs / _CONFIG)
        with np.load(inputs / _TENSORS) as tensors:
            params = jax.tree.map(jnp.array, params_from_hf(dict(tensors), config))
        model = GPTBigCode(config, dtype=jnp.dtype(self.dtype), remat=self.remat)
        settings = StepConfig(model=model, optimizer=_OPTIMIZER, steps=1000)
        tokens = np.load(inputs / _TOKENS)
        rows, length = tokens.shape
        batch = Batch(
            tokens,
            np.ones_like(tokens),
            np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
            np.ones((rows, length - 1), np.float32),
        )
        state = init_state(params, config=settings)
        del params

        def step() -> None:
            nonlocal state
            state, metrics = train_step(state, batch, config=settings)
            jax.block_until_ready((state, metrics))

        return step

    def _theirs(self, inputs: Path) -> Callable[[], None] | None:
        """The same in PyTorch; None, saying so, where torch or transformers is absent."""
        fields = json.loads((inputs / _CONFIG).read_text())
        with np.load(inputs / _TENSORS) as tensors:
            model = torch_model_of(fields, dict(tensors), "float32", device="cpu")
        if model is None:
            return None
        import torch

        model.train()
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
        tokens = torch.from_numpy(np.load(inputs / _TOKENS)).long()

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
                logits = model(tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), tokens[:, 1:].flatten()
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), _OPTIMIZER.clip_norm)
            optimizer.step()
            optimizer.zero_grad()

        return step


if __name__ == "__main__":
    tyro.cli(TrainStep).run()
