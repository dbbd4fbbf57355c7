"""Confidence intervals of shares and ratios, at 95 %, all from one fixed seed."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_NORMAL_QUANTILE = 1.959963984540054
_RESAMPLES = 4000


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share; right at 0 and 1 too, and with few trials.

    Raises:
      ValueError: no trials, or more successes than trials.

    Source: E. B. Wilson, JASA 22 (1927) 209.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(
            f"successes: {successes} of {trials} trials, expected 0 to trials, and a trial; "
            "measure something first"
        )
    share, z2 = successes / trials, _NORMAL_QUANTILE**2
    spread = _NORMAL_QUANTILE * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    centre, scale = share + z2 / (2 * trials), 1 + z2 / trials
    # At a share of 0 or 1 an end is exact; the formula misses it by rounding.
    return Interval(
        0.0 if successes == 0 else (centre - spread) / scale,
        1.0 if successes == trials else (centre + spread) / scale,
    )


def bootstrap(
    columns: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> Interval:
    """Percentile interval of a statistic of paired observations, resampled together.

    Args:
      columns: [n, k], a row for each observation, such as one line or one file.
      statistic: of the columns' sums [..., k], one number for each [...].
      seed: of the resamples.
    """
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(
        len(columns), np.full(len(columns), 1 / len(columns)), _RESAMPLES
    )
    values = statistic(weights.astype(np.float64) @ np.asarray(columns, np.float64))
    return Interval(
        *(float(value) for value in np.quantile(values, (0.025, 0.975), method="nearest"))
    )


def share(successes: int, trials: int) -> dict[str, Any]:
    """A share as results show it: its value, its counts and Wilson's interval."""
    return {
        "share": successes / trials,
        "count": successes,
        "of": trials,
        "interval": list(wilson(successes, trials)),
    }
