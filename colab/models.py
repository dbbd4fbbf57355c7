"""The model that a notebook works with."""

from pathlib import Path

from jaxcoder.diagnostics import say
from jaxcoder.errors import CheckpointError
from jaxcoder.generator import embedded_demo
from jaxcoder.hub import resolve

PUBLISHED = "bigcode/tiny_starcoder_py"


def model_or_demo(model: str) -> Path:
    """The folder of `model`; of the demo model, and says so, where the published one is not had.

    Args:
      model: a local folder, or a Hub id; empty: the demo model.

    Raises:
      CheckpointError: another model than the published one cannot be had.
    """
    if not model:
        return embedded_demo()
    try:
        return resolve(model)
    except CheckpointError as exc:
        if model != PUBLISHED:
            raise
        say(f"{exc}\nInstead: the demo model inside the package, whose output is not to be used.")
        return embedded_demo()
