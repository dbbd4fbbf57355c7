"""What a run began with beside its settings: model, data, and how JAX computes; later starts agree.

Each is written once, into the run directory, and compared by every start that goes on with it.
"""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxcoder.config import ModelConfig
from jaxcoder.durable import is_partial, replace_file
from jaxcoder.errors import ConfigError
from jaxcoder.json_file import json_bytes, parse_json_object, read_json_object

from .run_folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    DATA_FILE,
    EXPORT,
    METRICS_FILE,
    SAMPLES_FILE,
    START_FILE,
    TENSORBOARD,
    TOKENIZER_FILE,
    differences,
)

_OPTIONS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)

_PARTIAL_EXPORT = re.compile(rf"\.{EXPORT}-\d+\.partial-(\d+)-[0-9a-f]+")


def record_start(folder: Path, model: ModelConfig, *, dtype: str) -> None:
    """Write the model's config and what decides its arithmetic, or compare with what is there.

    Args:
      folder: of the run.
      model: the config of the model trained.
      dtype: name of the operands' type, "auto" resolved.

    Raises:
      ConfigError: the run began with others; lists each field.
    """
    options = {name: getattr(jax.config, name) for name in _OPTIONS}
    fields = {"model": dataclasses.asdict(model), "compute": {"dtype": dtype, **options}}
    path, given = folder / START_FILE, json_bytes(fields)
    if not path.exists():
        replace_file(path, given)
        return
    changes = differences(
        read_json_object(path, error=ConfigError),
        parse_json_object(given, path, error=ConfigError),
    )
    if changes:
        raise ConfigError(
            f"{path}: the run began with another model or arithmetic; put it back, on a device of "
            f"the same kind, to go on with the run, or give another --out{''.join(changes)}"
        )


def recorded_data(folder: Path) -> Mapping[str, str] | None:
    """The fingerprint of the data that the run began with; None before its first step.

    Raises:
      ConfigError: the file is not one that `record_data` wrote.
    """
    path = folder / DATA_FILE
    if not path.exists():
        return None
    found = read_json_object(path, error=ConfigError).get("fingerprint")
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: fingerprint is {found!r}, expected an object; restore the file, or delete it "
            "if the data is what the run began with"
        )
    return found


def record_data(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the report of the token store, where there is none yet."""
    path = folder / DATA_FILE
    if not path.exists():
        replace_file(path, json_bytes(report))


@contextlib.contextmanager
def undone_on_failure(folder: Path) -> Iterator[Callable[[], None]]:
    """Remove what a first start has made when an error ends it, all of it unused.

    So that a mistake in the settings, or one that asks for too much memory, can be mended under the
    same --out. It gives what is called once there is something to keep: nothing is removed then.
    """
    # The config last: while it is there, no other settings take over what else is.
    names = (METRICS_FILE, SAMPLES_FILE, START_FILE, DATA_FILE, TOKENIZER_FILE, CONFIG_FILE)
    new = [path for path in (folder / name for name in names) if not path.exists()]
    checkpoints, board = folder / CHECKPOINTS, folder / TENSORBOARD
    is_first, had_board = not checkpoints.exists(), board.exists()
    is_kept = False

    def keep() -> None:
        nonlocal is_kept
        is_kept = True

    try:
        yield keep
    except Exception:
        if not is_kept:
            if is_first:
                with contextlib.suppress(OSError):  # it was not made, or it is not empty
                    checkpoints.rmdir()
            if not had_board:
                shutil.rmtree(board, ignore_errors=True)
            for path in new:
                path.unlink(missing_ok=True)
        raise


def remove_partial_files(folder: Path) -> None:
    """Delete what killed writers of the run directory's own files left; its lock is held.

    Killed exports too, which need no lock: that of a process that lives is let be.
    """
    for path in folder.iterdir():
        if path.is_file() and is_partial(path):
            path.unlink(missing_ok=True)
        elif (export := _PARTIAL_EXPORT.fullmatch(path.name)) and not _is_alive(int(export[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    """Whether there is another process of this number on this machine."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # of another user; or no number of a process, and so of no export of ours
    return True
