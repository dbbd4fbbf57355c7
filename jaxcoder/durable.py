"""Writes that are complete or absent, also when the disk fills or the power goes."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import CheckpointError

_MARK = ".partial-"


def is_partial(folder: Path) -> bool:
    """Whether `folder` is one that an interrupted writer left behind."""
    return folder.name.startswith(".") and _MARK in folder.name


@contextlib.contextmanager
def new_folder(destination: Path, *, needed_bytes: int) -> Iterator[Path]:
    """Yield a temporary sibling to write into; on success it becomes `destination`.

    Every file and directory is synced before and after the rename. Missing parents are made. On
    failure everything made here is removed again.

    Raises:
      CheckpointError: `destination` exists and is not an empty directory, or the operating system
        refused; the message has the needed and the free bytes.
    """
    if os.path.lexists(destination) and not _is_empty_directory(destination):
        raise CheckpointError(
            f"{destination}: exists, expected a new or an empty folder; nothing was written. "
            "Choose another path, or move it away"
        )
    parent = destination.parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    partial = parent / f".{destination.name}{_MARK}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        for file in partial.iterdir():
            sync_to_disk(file)
        sync_to_disk(partial)
        partial.rename(destination)
    except BaseException as exc:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if not isinstance(exc, OSError):
            raise
        raise CheckpointError(
            f"{destination}: cannot be written ({exc}): needs about {needed_bytes} bytes, "
            f"{_free_bytes(parent)} are free; nothing was left behind. Free space or choose "
            "another path"
        ) from exc
    try:
        for folder in {parent, *(folder.parent for folder in made)}:
            sync_to_disk(folder)
    except OSError as exc:
        raise CheckpointError(
            f"{destination}: written, but not certain to survive a loss of power ({exc}); "
            "check the disk"
        ) from exc


def sync_to_disk(path: Path) -> None:
    """Flush a file or a directory to the disk, so that it survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` into a file: afterwards it holds all of the old or the new, a new one all or none.

    The mode of an old file is kept; a link stays one, and what it points to is replaced.

    Raises:
      ValueError: the operating system refused; says whether the file is as it was.
    """
    target = path.resolve()
    partial = target.parent / f".{target.name}{_MARK}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        # Private until the mode is copied: nobody may read meanwhile what they could not before.
        is_new = not target.exists()
        mode = 0o666 if is_new else 0o600
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not is_new:
            shutil.copymode(target, partial)
        partial.replace(target)
    except BaseException as exc:
        partial.unlink(missing_ok=True)
        if not isinstance(exc, OSError):
            raise
        raise ValueError(f"{path}: cannot be written ({exc.strerror}); it is as it was") from exc
    try:
        sync_to_disk(target.parent)
    except OSError as exc:
        raise ValueError(
            f"{path}: written, but not certain to survive a loss of power ({exc.strerror}); "
            "check the disk"
        ) from exc
