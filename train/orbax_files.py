"""Arrays in files, by orbax: the only file that knows it."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxcoder.errors import CheckpointError
from jaxcoder.problems import raise_if_any

from .leaves import is_same


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays`, by name, into the new `folder`; raises what orbax raises."""
    import orbax.checkpoint as ocp

    # Weights hardly compress: 8 % smaller for three times the time.
    with _quiet(), ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
        checkpointer.save(folder, arrays)


def write_and_read_back(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """`write_arrays`, and see that the same arrays come back; it takes memory for a second copy.

    Raises:
      CheckpointError: others came back, or none. And what orbax raises.
    """
    write_arrays(folder, arrays)
    found = read_arrays(folder, arrays)
    problems = [
        f"{name} is not what was written"
        for name, array in arrays.items()
        if not is_same(found[name], array)
    ]
    raise_if_any(problems, folder, remedy="check memory and disk", error=CheckpointError)


def read_arrays(folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of these names, which are all that `folder` has.

    Raises:
      CheckpointError: orbax could not read them.
      MemoryError: there is none for them.
    """
    import orbax.checkpoint as ocp

    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    try:
        with _quiet(), ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
            return checkpointer.restore(folder, restore_args=as_numpy)
    except MemoryError:
        raise
    except Exception as exc:
        raise CheckpointError(
            f"{folder}: cannot be loaded ({type(exc).__name__}: {exc}); check the memory, and "
            "that orbax-checkpoint is not older than the one that wrote it"
        ) from exc


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep orbax from logging the traceback of each of its threads: the error is raised anyway."""

    def is_foreign(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    logger.addFilter(is_foreign)
    try:
        yield
    finally:
        logger.removeFilter(is_foreign)
