"""A toy model and packed batches for the tests of the training step.

2 layers, 32 wide, 512 words, no dropout; rows hold two documents and padding at the end.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from model_cases import random_tensors, to_jax

from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import params_from_hf
from jaxcoder.model import GPTBigCode
from train.config import OptimizerConfig
from train.step import StepConfig, TrainState, init_state

TOY = ModelConfig(
    vocab_size=512,
    n_positions=64,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_inner=128,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
)
ROWS, LENGTH = 8, 24


class Batch(NamedTuple):
    """What train/data.py gives a step."""

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    loss_mask: np.ndarray


def packed_batch(*, seed: int = 0, rows: int = ROWS, length: int = LENGTH) -> Batch:
    """Two documents a row, of random lengths, then padding (segment 0, loss mask 0)."""
    rng = np.random.default_rng(seed)
    segment_ids = np.zeros((rows, length + 1), np.int32)
    positions = np.zeros((rows, length + 1), np.int32)
    for row in range(rows):
        first = rng.integers(3, length // 2)
        end = rng.integers(length // 2 + 3, length + 1)
        for segment, (start, stop) in enumerate([(0, first), (first, end)], 1):
            segment_ids[row, start:stop] = segment
            positions[row, start:stop] = np.arange(stop - start)
    same = segment_ids[:, 1:] == segment_ids[:, :-1]
    loss_mask = (same & (segment_ids[:, 1:] > 0)).astype(np.float32)
    tokens = rng.integers(0, TOY.vocab_size, (rows, length + 1), dtype=np.int32)
    return Batch(tokens, segment_ids, positions, loss_mask)


def toy_tensors(*, seed: int = 0) -> dict[str, np.ndarray]:
    """Hugging Face tensors of the toy; weights of deviation 1/sqrt(D), as new models get."""
    factor = np.float32(TOY.n_embd**-0.5 / 0.3)  # random_tensors draws them with 0.3
    tensors = random_tensors(TOY, seed=seed)
    return {name: array * factor if array.ndim == 2 else array for name, array in tensors.items()}


def toy_params(*, seed: int = 0) -> dict:
    """The parameter tree of `toy_tensors`, as JAX arrays of its own."""
    return to_jax(params_from_hf(toy_tensors(seed=seed), TOY))


def toy_config(**changes: object) -> StepConfig:
    """A step of 50 at a learning rate of 1e-3, with `changes` of its fields."""
    optimizer = OptimizerConfig(peak_lr=1e-3, warmup_steps=5)
    config = StepConfig(GPTBigCode(TOY), optimizer, steps=50, loss_chunk=50)
    return dataclasses.replace(config, **changes)


def toy_state(config: StepConfig) -> TrainState:
    """The state before the first step."""
    return init_state(toy_params(), config=config)


def as_numpy(tree: object) -> object:
    """A copy on the host, which donation does not touch."""
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def assert_bitwise_equal(a: object, b: object) -> None:
    """The same leaves to the last bit, NaNs among them."""
    for x, y in zip(jax.tree.leaves(as_numpy(a)), jax.tree.leaves(as_numpy(b)), strict=True):
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()


def relative_error(got: object, expected: object) -> float:
    """Norm of the difference of two trees over the norm of `expected`, in float64."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    differences, norms = 0.0, 0.0
    for x, y in pairs:
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        differences += float(np.square(x - y).sum())
        norms += float(np.square(y).sum())
    return (differences / norms) ** 0.5


def flat(tree: dict) -> dict[str, jnp.ndarray]:
    """Leaves by their path, such as h_0/attn/q/weight."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}
