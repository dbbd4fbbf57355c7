"""A checkpoint on disk: a folder that is whole or absent, with the SHA-256 of every file in it.

A folder is written under a name that nothing reads, its files and directories are synced, and
only then is it renamed to ``step-00000250``; it is renamed away again before it is deleted. So a
process killed at any moment, or a loss of power, leaves whole checkpoints and leftovers that
`remove_leftovers` knows by their name, nothing in between.
"""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxcoder.durable import is_partial, sync_to_disk
from jaxcoder.errors import CheckpointError
from jaxcoder.json_file import json_bytes, parse_json_object, read_regular_file
from jaxcoder.problems import raise_if_any, shorten

MANIFEST_FILE = "manifest.json"
FORMAT = 1
PHASES = ("temp write", "fsync", "rename", "directory fsync", "deletion")
"""What a save goes through, in order; `PhaseHook` is called inside each."""

PhaseHook = Callable[[str, int], None]
"""Called with the phase and the step of the folder it works on."""

_NAME = re.compile(r"step-(\d{8,18})")
_MAX_MANIFEST_BYTES = 64 << 20


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
      step: Optimizer steps done; an existing checkpoint of this step is replaced.
      write: Puts files and folders into the folder it is given.
      fields: JSON fields of the manifest, which `verify` returns.
      needed_bytes: About what is written, for the error message.
      on_phase: Called inside each phase.

    Raises:
      CheckpointError: it could not be written; older ones are as they were.
    """
    destination = step_folder(folder, step)
    partial = _unread_name(destination)
    try:
        partial.mkdir()
        write(partial)
        on_phase("temp write", step)
        (partial / MANIFEST_FILE).write_bytes(_manifest(partial, step, fields))
        _sync_files(partial)
        on_phase("fsync", step)
        _sync_directories(partial)
        replaced = _rename_away(destination) if destination.exists() else None
        on_phase("rename", step)
        partial.rename(destination)
    except BaseException as exc:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(exc, Exception):
            raise
        # Not OSError alone: the array library wraps what the system says in errors of its own.
        raise CheckpointError(
            f"{destination}: cannot be written ({_reason(exc)}): needs about {needed_bytes} bytes, "
            f"{_free_bytes(folder)} are free; checkpoints before it are as they were. Free space, "
            "or check the folder and its mode, and start again"
        ) from exc
    try:
        on_phase("directory fsync", step)
        sync_to_disk(folder)
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
        sync_to_disk(folder)
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
    fields = _read_manifest(path / MANIFEST_FILE)
    problems = []
    if fields.get("step") != step:
        problems.append(
            f"{MANIFEST_FILE} is of step {shorten(fields.get('step'))}, expected {step}"
        )
    for name, expected in fields["files"].items():
        try:
            found = _describe(path / name)
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as exc:
            problems.append(f"{name} cannot be read ({exc.strerror})")
        else:
            if found["bytes"] != expected["bytes"]:
                problems.append(f"{name} has {found['bytes']} bytes, expected {expected['bytes']}")
            elif found != expected:
                problems.append(f"{name} is not what was written (SHA-256)")
    raise_if_any(problems, path, remedy="the checkpoint is damaged", error=CheckpointError)
    return fields


def _manifest(folder: Path, step: int, fields: Mapping[str, Any]) -> bytes:
    """Content of the manifest; its own last field is the SHA-256 of all the others."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {
        "format": FORMAT,
        "step": step,
        **fields,
        "files": {path.relative_to(folder).as_posix(): _describe(path) for path in files},
    }
    return json_bytes({**content, "sha256": hashlib.sha256(json_bytes(content)).hexdigest()})


def _read_manifest(path: Path) -> dict[str, Any]:
    raw = read_regular_file(path, limit=_MAX_MANIFEST_BYTES, error=CheckpointError)
    fields = parse_json_object(raw, path, error=CheckpointError)
    version = fields.get("format")
    if type(version) is int and version > FORMAT:
        raise CheckpointError(
            f"{path}: format is {version}, expected {FORMAT}; it was written by newer code, "
            "update to read it"
        )
    expected = fields.pop("sha256", None)
    content = json_bytes(fields)
    # The bytes too, so that no flipped bit goes unseen, not even one in a space.
    if (
        hashlib.sha256(content).hexdigest() != expected
        or json_bytes({**fields, "sha256": expected}) != raw
    ):
        raise CheckpointError(
            f"{path}: is not what was written (SHA-256); the checkpoint is damaged"
        )
    return fields


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            sync_to_disk(path)


def _sync_directories(folder: Path) -> None:
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync_to_disk(path)


def _rename_away(path: Path) -> Path:
    unread = _unread_name(path)
    path.rename(unread)
    return unread


def _unread_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")


def _is_ours(path: Path) -> bool:
    return _NAME.match(path.name, 1) is not None


def _reason(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {lines[0][:300]}" if lines else type(exc).__name__


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
