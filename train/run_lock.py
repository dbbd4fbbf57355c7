"""The lock of a run's folder: two processes never write into one run."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxcoder.diagnostics import say
from jaxcoder.errors import ConfigError
from jaxcoder.problems import shorten

LOCK_FILE = "lock"

_MAX_CHARACTERS = 4096


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[str | None]:
    """Hold the lock of `folder`, which is made where it is absent, while the block runs.

    The operating system frees the lock when its holder dies, however it dies. The file stays. But
    where an error ends the block and there is nothing else in the folder, what was made here goes.

    Yields:
      Who held it and ended without freeing it, killed or crashed; None after a clean end.

    Raises:
      ConfigError: another process holds it (named), or the file cannot be opened.
    """
    file, made = _open_locked(folder)
    with file:
        killed = _holder(file)
        if killed is not None:
            say(f"{folder}: the run before ended without cleaning up ({killed}); taking over")
        _write(file, {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()})
        try:
            yield killed
        except Exception:
            # While it is still ours: whoever has opened the file sees that it is gone.
            _remove(made)
            raise
        finally:
            file.truncate(0)


def _open_locked(folder: Path) -> tuple[IO[str], list[Path]]:
    """The file with its lock held, and what was made for it: the file, the folder, those above.

    A process that fails deletes the file that it made. One that had opened it meanwhile would
    lock a file without a name, and another process the next one of that name.
    """
    while True:
        file, made = _open(folder)
        try:
            _lock(file, folder)
            if _is_in_place(file, folder / LOCK_FILE):
                return file, made
        except BaseException:
            file.close()
            raise
        file.close()


def _open(folder: Path) -> tuple[IO[str], list[Path]]:
    path = folder / LOCK_FILE
    made = [new for new in (path, folder, *folder.parents) if not os.path.lexists(new)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Never truncated here: until the lock is ours, the content is the holder's.
        return path.open("a+", encoding="utf-8", errors="replace"), made
    except OSError as exc:
        _remove(made)
        raise ConfigError(
            f"{path}: cannot be opened ({exc.strerror}); expected a folder to write the run into, "
            "choose another or check its mode"
        ) from exc


def _is_in_place(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove(made: list[Path]) -> None:
    """Delete the file and the folders of `made`, each unless there is something else in it."""
    for path in made:
        with contextlib.suppress(OSError):
            if path.is_dir():
                path.rmdir()
            elif [other.name for other in path.parent.iterdir()] == [LOCK_FILE]:
                path.unlink()


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = _holder(file) or "a process that has not given its name yet"
        raise ConfigError(
            f"{folder}: this run is being written by {holder}, or by a child of it; wait for it, "
            "stop it, or choose another folder"
        ) from exc
    except OSError as exc:
        say(
            f"{folder}: warning: this file system has no locks ({exc.strerror}); "
            "nothing keeps a second process from writing into this run"
        )


def _holder(file: IO[str]) -> str | None:
    """Who wrote the content, in words; None where it is empty."""
    file.seek(0)
    text = file.read(_MAX_CHARACTERS)
    if not text:
        return None
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return f"an unknown process that wrote {shorten(text)}"


def _write(file: IO[str], fields: dict[str, Any]) -> None:
    file.truncate(0)
    file.write(json.dumps(fields))
    file.flush()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
