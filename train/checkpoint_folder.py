"""A checkpoint on disk: a folder that is whole or absent, whatever interrupts its writer.

A folder is written under a name that nothing reads, its files and directories are synced, and
only then is it renamed to ``step-00000250``; it is renamed away again before it is deleted. So a
process killed at any moment, or a loss of power, leaves whole checkpoints and leftovers that
`remove_leftovers` knows by their name, nothing in between.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxcoder.durable import is_partial, sync_to_disk
from jaxcoder.errors import CheckpointError
from jaxcoder.problems import shorten

from .checkpoint_manifest import MANIFEST_FILE, manifest_bytes, read_verified

PHASES = ("temp write", "fsync", "rename", "directory fsync", "deletion")
"""What a save goes through, in order; `PhaseHook` is called inside each."""

PhaseHook = Callable[[str, int], None]
"""Called with the phase and the step of the folder it works on."""

_NAME = re.compile(r"step-(\d{8,18})")
# What file systems say that cannot sync a directory, some network and user-space ones.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def no_hook(phase: str, step: int) -> None:
    """The `PhaseHook` that does nothing."""


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, whether or not it exists."""
    return folder / f"step-{step:08d}"


def committed_steps(folder: Path) -> list[int]:
    """Steps with a checkpoint in `folder`, valid or not, ascending; none where it is absent."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def commit(
    folder: Path,
    step: int,
    *,
    write: Callable[[Path], None],
    fields: Mapping[str, Any],
    needed_bytes: int,
    on_phase: PhaseHook = no_hook,
) -> None:
    """Make the checkpoint of `step`: what `write` puts into a folder, and a manifest of it.

    Args:
      folder: Existing folder of all checkpoints of a run.
      step: Optimizer steps done; a damaged checkpoint of this step is replaced.
      write: Puts files and folders into the folder it is given.
      fields: JSON fields of the manifest, which `verify` returns.
      needed_bytes: About what is written, for the error message.
      on_phase: Called inside each phase.

    Raises:
      CheckpointError: it could not be written, or a valid one is there; all are as they were.
    """
    destination = step_folder(folder, step)
    if destination.exists() and _is_valid(folder, step):
        raise CheckpointError(
            f"{destination}: holds a valid checkpoint already, expected none; continue from it, "
            "or move it away"
        )
    partial, replaced = unread_name(destination), None
    try:
        partial.mkdir()
        write(partial)
        on_phase("temp write", step)
        manifest = manifest_bytes(partial, {"step": step, **fields})
        (partial / MANIFEST_FILE).write_bytes(manifest)
        _sync_files(partial)
        on_phase("fsync", step)
        _sync_directories(partial)
        if destination.exists():
            replaced = _rename_away(destination)
        on_phase("rename", step)
        partial.rename(destination)
    except BaseException as exc:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced:
            with contextlib.suppress(OSError):
                replaced.rename(destination)
        if isinstance(exc, MemoryError) or not isinstance(exc, Exception):
            raise  # the disk is not to blame
        # Not OSError alone: the array library wraps what the system says in errors of its own.
        raise CheckpointError(
            f"{destination}: cannot be written ({_reason(exc)}): needs about {needed_bytes} bytes, "
            f"{_free_bytes(folder)} are free; older checkpoints are as they were. Free space, "
            "or check the folder and its mode, and start again"
        ) from exc
    try:
        on_phase("directory fsync", step)
        sync_directory(folder)
    except OSError as exc:
        raise CheckpointError(
            f"{destination}: written, but not certain to survive a loss of power ({exc}); "
            "check the disk"
        ) from exc
    if replaced:
        shutil.rmtree(replaced, ignore_errors=True)


def delete(folder: Path, step: int, *, on_phase: PhaseHook = no_hook) -> None:
    """Delete the checkpoint of `step`, which is whole until it is out of sight.

    Raises:
      CheckpointError: the operating system refused.
    """
    path = step_folder(folder, step)
    try:
        unread = _rename_away(path)
        on_phase("deletion", step)
        # Deletions inside must not reach the disk before the rename does.
        sync_directory(folder)
        shutil.rmtree(unread)
    except OSError as exc:
        raise CheckpointError(
            f"{path}: an old checkpoint that cannot be deleted ({exc}); the newer ones are whole. "
            "Delete it, or keep more checkpoints"
        ) from exc


def remove_leftovers(folder: Path) -> list[str]:
    """Delete what killed writers left in `folder`; returns the names.

    Only for the process that holds the lock of the run: to anyone else a save in progress looks
    the same.

    Raises:
      CheckpointError: the operating system refused.
    """
    left = [path for path in folder.iterdir() if is_partial(path) and _is_ours(path)]
    for path in left:
        try:
            shutil.rmtree(path)
        except OSError as exc:
            raise CheckpointError(
                f"{path}: left by an interrupted save, and cannot be deleted ({exc}); delete it"
            ) from exc
    return [path.name for path in left]


def verify(folder: Path, step: int) -> dict[str, Any]:
    """The manifest's fields of the checkpoint of `step`, all of whose files were read and hashed.

    Raises:
      CheckpointError: names each file that is missing, damaged or unreadable.
    """
    path = step_folder(folder, step)
    fields = read_verified(path)
    if fields.get("step") != step:
        raise CheckpointError(
            f"{path}: {MANIFEST_FILE} is of step {shorten(fields.get('step'))}, expected {step}; "
            "give the folder its own name back"
        )
    return fields


def unread_name(path: Path) -> Path:
    """A name beside `path` that no reader takes and `remove_leftovers` knows."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk, where its file system can do that.

    Raises:
      OSError: it can, and failed.
    """
    try:
        sync_to_disk(path)
    except OSError as exc:
        if exc.errno not in _NO_SYNC:
            raise


def _sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            sync_to_disk(path)


def _sync_directories(folder: Path) -> None:
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync_directory(path)


def _is_valid(folder: Path, step: int) -> bool:
    try:
        verify(folder, step)
    except CheckpointError:
        return False
    return True


def _rename_away(path: Path) -> Path:
    unread = unread_name(path)
    path.rename(unread)
    return unread


def _is_ours(path: Path) -> bool:
    return _NAME.match(path.name, 1) is not None


def _reason(exc: Exception) -> str:
    text = f"{type(exc).__name__}: {str(exc).strip()}"
    # What the system said comes last, after the array library's long names of files.
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
