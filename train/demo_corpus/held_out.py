"""What is held out: packages and modules picked by the SHA-256 of their names, not by hand."""

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath

from .cleaning import is_test
from .packages import Package

STANDARD_PACKAGES = 8
"""Packages of the standard library that are held out."""
STANDARD_MODULES = 8
"""Single modules of the standard library that are held out."""

# Not the library proper: tests, demonstrations, bundled programs, tables.
NOT_LIBRARY = frozenset(
    {"test", "idlelib", "turtledemo", "lib2to3", "ensurepip", "encodings", "pydoc_data"}
)
_SMALLEST_MODULE = 10_000
_FEWEST_FILES = 15
_SIZES = (200_000, 1_500_000)


def name_order(name: str) -> str:
    """Sorting by this is an order that nobody chose."""
    return hashlib.sha256(name.encode()).hexdigest()


def choose_standard(package: Package) -> tuple[str, ...]:
    """Top-level names of the standard library to hold out: 8 packages, then 8 modules.

    Private names and those of `NOT_LIBRARY` are passed over, and modules below 10 kB.
    """
    sizes: dict[str, int] = {}
    folders: set[str] = set()
    for path, contents in package.files.items():
        name = path.parts[0].removesuffix(".py")
        if not name.startswith("_") and name not in NOT_LIBRARY:
            sizes[name] = sizes.get(name, 0) + len(contents)
            if len(path.parts) > 1:
                folders.add(name)
    modules = {name for name in sizes if name not in folders and sizes[name] >= _SMALLEST_MODULE}
    return (
        *sorted(folders, key=name_order)[:STANDARD_PACKAGES],
        *sorted(modules, key=name_order)[:STANDARD_MODULES],
    )


def standard_part(path: PurePosixPath, names: Iterable[str]) -> str:
    """Which part of the library `path` is: "held out", "held-out test" (its tests), or "train"."""
    names = set(names)
    if path.parts[0].removesuffix(".py") in names:
        return "held-out test" if is_test(path) else "held out"
    if path.parts[0] == "test":
        words = {word for part in path.parts[1:] for word in part.removesuffix(".py").split("_")}
        if not names.isdisjoint(words):
            return "held-out test"
    return "train"


def choose_third_party(packages: Iterable[Package]) -> str:
    """The name of the package to hold out: of middle size, in one top-level folder.

    Raises:
      ValueError: none of `packages` is.
    """
    fitting = []
    for package in packages:
        own = {path: text for path, text in package.files.items() if not is_test(path)}
        tops = {path.parts[0] for path in own}
        size = sum(map(len, own.values()))
        if len(tops) == 1 and len(own) >= _FEWEST_FILES and _SIZES[0] <= size <= _SIZES[1]:
            fitting.append(package.name)
    if not fitting:
        raise ValueError(
            f"wheels: no permissively licensed package of {_FEWEST_FILES} files or more and "
            f"{_SIZES[0]} to {_SIZES[1]} bytes in one folder; put one there to be held out"
        )
    return min(fitting, key=name_order)
