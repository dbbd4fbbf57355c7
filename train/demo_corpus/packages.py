"""The Python files of wheels, source archives and the standard library."""

import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .cleaning import is_vendored
from .licences import permissive_licence

_NOT_STANDARD = frozenset({"site-packages", "dist-packages", "__pycache__"})


class Package(NamedTuple):
    """A package's .py files; vendored copies of other packages are left out."""

    name: str
    version: str
    licence: str | None
    """As the metadata states it; None: not permissive, or not clear."""
    files: dict[PurePosixPath, bytes]
    """Path inside the package to contents; empty where the licence is None."""


def read_packages(folder: Path) -> Iterator[Package]:
    """The wheels and .tar.gz source archives of a folder, by name, one at a time.

    Raises:
      ValueError: no such archives, or one without metadata.
    """
    archives = sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")])
    if not archives:
        raise ValueError(
            f"wheels: {folder} has no .whl or .tar.gz, expected packages; "
            "fill it by `pip download --no-deps --dest FOLDER NAME ...`"
        )
    for archive in archives:
        yield _read_wheel(archive) if archive.suffix == ".whl" else _read_sdist(archive)


def read_standard_library() -> Package:
    """The running interpreter's own library, without installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    files = {}
    for path in sorted(root.rglob("*.py")):
        inside = PurePosixPath(path.relative_to(root).as_posix())
        bundle = inside.parts[0].startswith("config-") or not _NOT_STANDARD.isdisjoint(inside.parts)
        if not bundle and not is_vendored(inside):
            files[inside] = path.read_bytes()
    version = ".".join(map(str, sys.version_info[:3]))
    return Package("python", version, "PSF-2.0", files)


def _read_wheel(path: Path) -> Package:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        top = [name for name in names if name.endswith(".dist-info/METADATA")]
        package = _described(path, [archive.read(name) for name in top if name.count("/") == 1])
        if package.licence is None:
            return package
        for name in sorted(names):
            inside = PurePosixPath(name)
            if _is_own_code(inside):
                package.files[inside] = archive.read(name)
    return package


def _read_sdist(path: Path) -> Package:
    contents = {}
    with tarfile.open(path) as archive:
        for member in archive:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if member.isfile() and (str(inside) == "PKG-INFO" or _is_own_code(inside)):
                file = archive.extractfile(member)
                contents[inside] = file.read() if file else b""
    metadata = contents.pop(PurePosixPath("PKG-INFO"), None)
    package = _described(path, [] if metadata is None else [metadata])
    if package.licence is not None:
        package.files.update(sorted(contents.items()))
    return package


def _is_own_code(path: PurePosixPath) -> bool:
    is_data = bool(path.parts) and path.parts[0].endswith((".data", ".dist-info"))
    return path.suffix == ".py" and not is_data and not is_vendored(path)


def _described(path: Path, metadata: list[bytes]) -> Package:
    if len(metadata) != 1:
        raise ValueError(
            f"{path}: {len(metadata)} files of metadata, expected one; download it again"
        )
    fields: Message = message_from_bytes(metadata[0])
    licence = permissive_licence(fields)
    return Package(str(fields["Name"]), str(fields["Version"]), licence, {})
