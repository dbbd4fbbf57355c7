"""Gradients, one AdamW step and fifty of them, against PyTorch in float64 on the same weights.

Ours sees two documents packed in a row; PyTorch sees each document in a row of its own, with
nothing to mask but the end. Equal results also say that packing changes nothing.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from train_cases import TOY, Batch, flat, packed_batch, toy_config, toy_state, toy_tensors

from benchmarks.harness import torch_model
from jaxcoder.hf_names import params_from_hf
from train.config import OptimizerConfig
from train.step import loss_and_gradients, train_step

pytestmark = pytest.mark.parity

ALL_GRADIENTS, EACH_TENSOR, OVER_TORCH_FLOAT32 = 1e-6, 2e-6, 3.0
ONE_STEP, EACH_LOSS = 1e-4, 1e-5
STEPS = 50
MOST_LEFT_OUT = 10
"""Numbers of the model, of 40,720."""
OPTIMIZER = OptimizerConfig(peak_lr=1e-3, warmup_steps=0, final_lr_ratio=1.0)


class Documents(NamedTuple):
    """The documents of a packed batch, one in a row, padded at the end; torch tensors."""

    tokens: Any
    weights: Any
    """Of the prediction that each token but the last makes."""


def documents(batch: Batch, dtype: str) -> Documents:
    import torch

    spans = []
    for row, segments in enumerate(batch.segment_ids):
        for segment in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == segment)
            spans.append((row, at[0], at[-1] + 1))
    longest = max(stop - start for _, start, stop in spans)
    tokens = np.zeros((len(spans), longest), np.int64)
    weights = np.zeros((len(spans), longest - 1))
    for i, (row, start, stop) in enumerate(spans):
        tokens[i, : stop - start] = batch.tokens[row, start:stop]
        weights[i, : stop - start - 1] = batch.loss_mask[row, start : stop - 1]
    assert weights.sum() == batch.loss_mask.sum()
    return Documents(torch.from_numpy(tokens), torch.from_numpy(weights).to(getattr(torch, dtype)))


def torch_loss(model: Any, batch: Batch, dtype: str) -> Any:
    import torch

    tokens, weights = documents(batch, dtype)
    logits = model(tokens[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return (losses * weights.flatten()).sum() / weights.sum()


def our_names(model: Any, *, gradients: bool) -> dict[str, np.ndarray]:
    """Parameters of the PyTorch model, or their gradients, by the paths of our tree."""
    tensors = {
        name: (parameter.grad if gradients else parameter.detach()).numpy()
        for name, parameter in model.named_parameters()
    }
    return flat(params_from_hf(tensors, TOY))


def torch_gradients(batch: Batch, dtype: str) -> dict[str, np.ndarray]:
    model = torch_model(TOY, toy_tensors(), dtype, device="cpu")
    torch_loss(model, batch, dtype).backward()
    return our_names(model, gradients=True)


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray], *, over: dict) -> float:
    """Norm of a - b over the norm of `over`, all tensors together, in float64."""

    def norm(arrays: list[np.ndarray]) -> float:
        return sum(float(np.square(array).sum()) for array in arrays) ** 0.5

    differences = [np.asarray(a[name], np.float64) - np.asarray(b[name], np.float64) for name in b]
    return norm(differences) / norm([np.asarray(leaf, np.float64) for leaf in over.values()])


def test_gradients_equal_float64() -> None:
    """All together, each tensor by itself, and none much worse than PyTorch's own float32."""
    batch, config = packed_batch(), toy_config()
    step = jax.jit(loss_and_gradients, static_argnames="config")
    ours = flat(step(toy_state(config), batch, config=config)[1])
    right, torch32 = (torch_gradients(batch, dtype) for dtype in ("float64", "float32"))
    assert distance(ours, right, over=right) <= ALL_GRADIENTS
    for name, tensor in right.items():
        error, torch_error = (
            distance({name: got[name]}, {name: tensor}, over={name: tensor})
            for got in (ours, torch32)
        )
        assert error <= EACH_TENSOR, name
        assert error <= OVER_TORCH_FLOAT32 * torch_error, name


def torch_optimizer(model: Any, config: OptimizerConfig, *, decay_all: bool = False) -> Any:
    import torch

    decaying, rest = [], []
    for parameter in model.parameters():
        (decaying if parameter.ndim >= 2 or decay_all else rest).append(parameter)
    groups = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=betas, eps=config.epsilon)


def torch_run(
    config: OptimizerConfig, *, steps: int, decay_all: bool = False
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and last weights of PyTorch in float64."""
    import torch

    model = torch_model(TOY, toy_tensors(), "float64", device="cpu")
    optimizer = torch_optimizer(model, config, decay_all=decay_all)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = torch_loss(model, packed_batch(seed=step % 5), "float64")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, our_names(model, gradients=False)


def our_run(steps: int) -> tuple[list[float], dict[str, np.ndarray]]:
    config = toy_config(optimizer=OPTIMIZER)
    state, losses = toy_state(config), []
    for step in range(steps):
        state, metrics = train_step(state, packed_batch(seed=step % 5), config=config)
        losses.append(float(metrics.loss))
    return losses, flat(state.params)


def largest_error(losses: list[float], right: list[float]) -> float:
    return float(np.abs(np.array(losses) / np.array(right) - 1).max())


WRONG = {
    "weight decay on biases": (OPTIMIZER, True),
    "beta2 0.999": (dataclasses.replace(OPTIMIZER, beta2=0.999), False),
}


def without_key_biases(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` with the values' half alone of each kv bias.

    A constant added to all keys shifts the scores of a query alike and the softmax forgets it, so
    that a key's bias has no gradient. What rounding leaves of one, Adam would make into a move of
    up to the learning rate, ours and PyTorch's float32 in directions of their own.
    """
    half = TOY.head_dim
    return {
        name: np.asarray(leaf)[half:] if name.endswith("kv/bias") else leaf
        for name, leaf in tensors.items()
    }


def with_gradients_above_noise(
    tensors: dict[str, np.ndarray], gradients: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`tensors` without the numbers whose gradient is not much above Adam's epsilon.

    The first step divides a gradient by its own size plus epsilon, so that the rounding error of
    one of 2e-8, beside others of 4e-2, was all of the error; it depends on the processor.
    """
    least = 10 * OPTIMIZER.epsilon
    chosen = {name: (np.abs(leaf) > least) | (leaf == 0) for name, leaf in gradients.items()}
    return {name: np.asarray(leaf)[chosen[name]] for name, leaf in tensors.items()}


def test_one_step_equals_float64() -> None:
    start = flat(params_from_hf(toy_tensors(), TOY))
    ours, right = our_run(1)[1], torch_run(OPTIMIZER, steps=1)[1]
    update = {name: right[name] - start[name].astype(np.float64) for name in right}
    gradients = without_key_biases(torch_gradients(packed_batch(seed=0), "float64"))
    compared = [
        with_gradients_above_noise(without_key_biases(run), gradients) for run in (ours, right)
    ]
    assert distance(*compared, over=update) <= ONE_STEP
    left_out = sum(leaf.size for leaf in gradients.values()) - sum(
        leaf.size for leaf in compared[0].values()
    )
    assert left_out <= MOST_LEFT_OUT
    # All of them, those left out too: a first step moves none further.
    for name in update:
        assert np.abs(ours[name] - right[name]).max() <= 2 * OPTIMIZER.peak_lr
    # The key biases: within what rounding can move them, and without effect on any loss.
    for name in update:
        if name.endswith("kv/bias"):
            moved = np.abs(np.asarray(ours[name]) - start[name])[: TOY.head_dim]
            assert moved.max() <= OPTIMIZER.peak_lr


def test_fifty_losses_equal_float64() -> None:
    ours, _ = our_run(STEPS)
    right, _ = torch_run(OPTIMIZER, steps=STEPS)
    assert right[-1] < right[0] - 0.5
    assert largest_error(ours, right) <= EACH_LOSS


@pytest.mark.parametrize("mistake", WRONG)
def test_another_optimizer_is_far_away(mistake: str) -> None:
    """Control: either mistake shows in the losses."""
    config, decay_all = WRONG[mistake]
    ours, _ = our_run(STEPS)
    wrong, _ = torch_run(config, steps=STEPS, decay_all=decay_all)
    assert largest_error(ours, wrong) > 2 * EACH_LOSS


@pytest.mark.parametrize("mistake", WRONG)
def test_one_step_of_another_optimizer(mistake: str) -> None:
    """Decay of biases is far away after one step; beta2 only from the second step on.

    In the first, Adam's bias correction takes any beta2 out again.
    """
    config, decay_all = WRONG[mistake]
    steps = 1 if decay_all else 2
    start = flat(params_from_hf(toy_tensors(), TOY))
    ours, wrong = our_run(steps)[1], torch_run(config, steps=steps, decay_all=decay_all)[1]
    update = {name: wrong[name] - start[name].astype(np.float64) for name in wrong}
    error = distance(without_key_biases(ours), without_key_biases(wrong), over=update)
    assert error > 2 * ONE_STEP
