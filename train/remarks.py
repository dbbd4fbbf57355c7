"""What is said of a step out of the ordinary: not finite, no token counted, or a loss spike."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from .step import Metrics, bad_tensors

LOSSES_KEPT = 32
"""Losses, the last of taken steps, whose median a loss is compared with."""
_LEAST_LOSSES = 8  # fewer, as after a run's first steps, are no measure
# The demo model's losses stay below 1.3 times their median; batches of fewer tokens vary more. Far
# enough off is ln V, 10.8 of 49,152 tokens, for a model below 3.6 nats that forgets all it knew.
_SPIKE = 3.0
_LEAST_RISE = 0.5  # nats: three times next to nothing, as of text known by heart, is still little


class Remark(NamedTuple):
    """One thing to say of a step."""

    text: str
    """What was found."""
    outcome: str
    """What became of the step."""
    fields: dict[str, Any]
    """The same for a line of metrics.jsonl."""


def remark_on(
    metrics: Metrics, *, tensors: Sequence[str], losses: Sequence[float]
) -> Remark | None:
    """What is to be said of a step; None: nothing, as of most.

    Args:
      metrics: of the step, on the host.
      tensors: the names of what is trained.
      losses: of the steps before, as many as are kept.
    """
    if not metrics.is_finite:
        return _not_finite(metrics, tensors)
    if not metrics.tokens:
        return Remark(
            "no token of its batch counts in the loss",
            "weights and optimizer are as they were",
            {"skipped": "no token counts"},
        )
    return _spike(float(metrics.loss), losses)


def _not_finite(metrics: Metrics, tensors: Sequence[str]) -> Remark:
    gradients = bad_tensors(tensors, metrics.tensor_is_finite)
    moments = bad_tensors(tensors, metrics.moments_are_finite)
    of_moments = f", moments of {', '.join(moments)}" if moments else ""
    return Remark(
        f"not finite: loss {float(metrics.loss)}, "
        f"gradients of {', '.join(gradients) or 'no tensor'}{of_moments}",
        "weights and optimizer are as they were",
        {"bad_tensors": gradients} | ({"bad_moments": moments} if moments else {}),
    )


def _spike(loss: float, losses: Sequence[float]) -> Remark | None:
    if len(losses) < _LEAST_LOSSES:
        return None
    median = statistics.median(losses)
    if loss <= max(_SPIKE * median, median + _LEAST_RISE):
        return None
    return Remark(
        f"loss {loss:.4g} is more than {_SPIKE:g} times the median {median:.4g} of the last "
        f"{len(losses)}",
        "the step was taken, the run goes on",
        {"loss_spike": loss, "median_loss": median},
    )
