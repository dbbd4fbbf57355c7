"""A device, or the machine, without room for what a run needs: told with what needs less."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from .checkpoint_folder import committed_steps
from .config import TrainConfig
from .run_folder import CHECKPOINTS, CONFIG_FILE
from .stopped import TrainingStopped

# jax 0.7.2 calls it INTERNAL where the room for intermediate results is wanting.
_WORDS = re.compile(r"RESOURCE_EXHAUSTED|out[ _]of[ _]memory", re.IGNORECASE)


@contextlib.contextmanager
def out_of_memory_told(run: Path, config: TrainConfig) -> Iterator[None]:
    """Turn the block's errors for want of memory into one that says what to do.

    Args:
      run: the run's folder, as the block leaves it.
      config: its settings.

    Raises:
      TrainingStopped: names the settings that take memory, and what is saved.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as exc:
        if not is_out_of_memory(exc):
            raise
        raise TrainingStopped(
            f"{run}: {out_of_memory(exc)}. A step needs less with {_remedies(config)}. "
            f"{_what_is_saved(run)}"
        ) from exc


def is_out_of_memory(exc: Exception) -> bool:
    """Whether an error of the interpreter's, NumPy's or JAX's is for want of memory."""
    text = str(exc)
    return isinstance(exc, MemoryError) or bool(_WORDS.search(text))


def out_of_memory(exc: Exception) -> str:
    """What to say of such an error: its first line, a device goes on with a table of its memory."""
    return f"out of memory ({(str(exc).strip() or type(exc).__name__).splitlines()[0]})"


def _remedies(config: TrainConfig) -> str:
    """Settings that take less memory than those of `config`, as far as there are any."""
    batch, compute = config.batch, config.compute
    remedies = [
        f"a smaller compute.loss_chunk (now {compute.loss_chunk})",
        f"a smaller batch.seq_len (now {batch.seq_len})",
    ]
    if compute.remat == "none":
        remedies.insert(0, "compute.remat block (now none)")
    if batch.accumulation < batch.size:
        remedies.insert(0, f"a greater batch.accumulation (now {batch.accumulation})")
    return f"{', '.join(remedies[:-1])} or {remedies[-1]}"


def _what_is_saved(run: Path) -> str:
    if not (run / CONFIG_FILE).exists():
        return (
            "No step was taken and nothing is left behind: other settings can have the same --out"
        )
    steps = committed_steps(run / CHECKPOINTS)
    saved = f"Step {steps[-1]} is saved" if steps else "No step is saved yet"
    return (
        f"{saved} and nothing saved is lost: the same command goes on where there is more memory; "
        "other settings need another --out"
    )
