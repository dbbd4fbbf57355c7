"""Steps of a run that a test looks at, cuts off, or spoils."""

from collections.abc import Callable
from typing import Any

import pytest
from train_cases import as_numpy

from train import loop
from train.data import Batch
from train.step import Metrics, StepConfig, TrainState, train_step

Step = Callable[..., tuple[TrainState, Metrics]]


class PowerCut(RuntimeError):
    """What ends a run between two steps."""


class WatchedSteps:
    """Stands in for `train_step` in the loop: keeps copies of the states before and after.

    Attributes:
      states: the state before the first step seen, then that after each.
    """

    def __init__(self, *, cut_before: int | None = None, spoiled: dict[int, Step] | None = None):
        """Raise `PowerCut` in place of step `cut_before`; take the steps in `spoiled` by those."""
        self.states: list[Any] = []
        self._cut_before, self._spoiled = cut_before, spoiled or {}

    def __call__(
        self, state: TrainState, batch: Batch, *, config: StepConfig
    ) -> tuple[TrainState, Metrics]:
        number = int(state.step)
        if number == self._cut_before:
            raise PowerCut
        if not self.states:
            self.states.append(as_numpy(state))
        step = self._spoiled.get(number, train_step)
        state, metrics = step(state, batch, config=config)
        self.states.append(as_numpy(state))
        return state, metrics


def watched(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> WatchedSteps:
    """Put `WatchedSteps` with these arguments into the loop."""
    steps = WatchedSteps(**arguments)
    monkeypatch.setattr(loop, "train_step", steps)
    return steps
