"""A folder that cannot be written, for root too: what the system would say, said in its place."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def make_read_only(patch: pytest.MonkeyPatch, folder: Path, *, code: int = errno.EROFS) -> None:
    """Refuse, with the error `code`, to make, open to write, rename or delete below `folder`."""

    def refuse_below(path: Any) -> None:
        if isinstance(path, str | Path) and folder in Path(path).parents:
            raise OSError(code, os.strerror(code), str(path))

    def guarded(function: Callable) -> Callable:
        def call(path: Any, *arguments: Any, **keywords: Any) -> Any:
            refuse_below(path)
            return function(path, *arguments, **keywords)

        return call

    def guarded_open(path: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if set(mode) & set("wax+"):
            refuse_below(path)
        return io_open(path, mode, *arguments, **keywords)

    io_open = io.open
    for module in (io, builtins):
        patch.setattr(module, "open", guarded_open)
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        patch.setattr(os, name, guarded(getattr(os, name)))
