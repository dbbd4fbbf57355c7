"""Whether a file system keeps the promises that checkpoints rest on, tried before a run starts."""

import os
import shutil
from pathlib import Path

from jaxcoder.durable import sync_to_disk
from jaxcoder.errors import CheckpointError

from .checkpoint_folder import step_folder, unread_name


def probe_folder(folder: Path) -> list[str]:
    """What is weaker than expected in `folder`, each as a sentence; nothing stays behind.

    Whether a rename is atomic when the power goes cannot be tried, only whether it works.

    Raises:
      CheckpointError: files cannot be written, or folders not renamed.
    """
    first, second = (unread_name(step_folder(folder, 0)) for _ in range(2))
    try:
        first.mkdir()
        file = first / "file"
        file.write_bytes(b"content")
        problems = _sync_problems(file, first, folder)
        first.rename(second)
        if first.exists() or not (second / "file").is_file():
            problems.append("renaming a folder is not one operation here; use a local disk")
    except OSError as exc:
        raise CheckpointError(
            f"{folder}: checkpoints cannot be written here ({os.strerror(exc.errno or 0)}); "
            "check the mode and the free space, or choose another folder"
        ) from exc
    finally:
        shutil.rmtree(first, ignore_errors=True)
        shutil.rmtree(second, ignore_errors=True)
    return problems


def _sync_problems(*paths: Path) -> list[str]:
    for path in paths:
        try:
            sync_to_disk(path)
        except OSError as exc:
            kind = "folders" if path.is_dir() else "files"
            return [
                f"{kind} cannot be synced to the disk ({exc.strerror}): a checkpoint may not "
                "survive a loss of power; use a local disk"
            ]
    return []
