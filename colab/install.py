"""The notebooks' first cell: adds the libraries that are missing, changes none that is there.

A running kernel cannot take up another JAX, and a JAX of another version would not fit the
accelerator's plugin beside it. So pip is bound to every version that is installed, and what is
installed is compared afterwards. The checkout itself is not installed: the cell has put it on the
path, which needs no restart.

`packaging` comes with every Jupyter kernel.
"""

import importlib
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

EXTRA = "train"
"""What the notebooks need beyond the library: pictures and training."""


def install(checkout: Path) -> None:
    """Add what the project in `checkout` needs and this interpreter lacks, and say what was added.

    Raises:
      RuntimeError: Python or an installed package is of a version that the project does not take,
        or pip fails; nothing was changed. Or pip did change a package; names it.
    """
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    before = installed()
    _check_versions(project, before)
    missing = [need for need in requirements(project) if canonicalize_name(need.name) not in before]
    failure = _run_pip(missing, before) if missing else ""
    importlib.invalidate_caches()
    after = installed()
    added = [f"{name} {after[name]}" for name in sorted(after.keys() - before.keys())]
    changes = [
        f"{name} {version} -> {after.get(name, 'removed')}"
        for name, version in before.items()
        if after.get(name) != version
    ]
    if changes:
        raise RuntimeError(
            f"pip changed what was installed: {', '.join(changes)}; take a new runtime"
        )
    if failure:
        asked = ", ".join(map(str, missing))
        beside = f"; it did add {', '.join(added)}" if added else ""
        raise RuntimeError(
            f"pip cannot add {asked} beside what is installed; nothing was changed{beside}. "
            f"It says:\n{failure}"
        )
    print(f"added: {', '.join(added) or 'nothing'}; {len(before)} packages stay as they were")


def installed() -> dict[str, str]:
    """Every distribution that this interpreter sees: canonical name -> version."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        # A removal that was cut off leaves a folder without either.
        name = distribution.metadata.get("Name")
        version = distribution.metadata.get("Version")
        if name and version:
            found.setdefault(canonicalize_name(name), version)  # the first on the path is imported
    return found


def requirements(project: Mapping[str, Any]) -> list[Requirement]:
    """What the table `project` of pyproject.toml asks for on this interpreter, with `EXTRA`."""
    lines = [*project["dependencies"], *project["optional-dependencies"][EXTRA]]
    asked = [Requirement(line) for line in lines]
    return [need for need in asked if need.marker is None or need.marker.evaluate()]


def _check_versions(project: Mapping[str, Any], before: Mapping[str, str]) -> None:
    """Refuse, before anything is changed, what only another version could mend."""
    problems = [
        f"{need.name} is {before[name]}, expected {need.specifier}"
        for need in requirements(project)
        if (name := canonicalize_name(need.name)) in before
        and not need.specifier.contains(before[name], prereleases=True)
    ]
    python = platform.python_version()
    if not SpecifierSet(project["requires-python"]).contains(python, prereleases=True):
        problems.append(f"Python is {python}, expected {project['requires-python']}")
    if problems:
        raise RuntimeError(
            f"{'; '.join(problems)}. Nothing was changed: what is installed stays as it is. Take a "
            "newer runtime, or install these yourself and restart it"
        )


def _run_pip(missing: Sequence[Requirement], before: Mapping[str, str]) -> str:
    """Let pip add `missing`, bound to the versions `before`; what it said if it failed, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        lines = [f"{name}=={version}\n" for name, version in before.items() if _is_valid(version)]
        constraints.write_text("".join(lines), encoding="utf-8")
        options = ["--disable-pip-version-check", "--constraint", str(constraints)]
        command = [sys.executable, "-m", "pip", "install", *options, *map(str, missing)]
        # Not in the notebook's folder: its files could be imported in place of pip's.
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return (result.stdout + result.stderr).strip() if result.returncode else ""


def _is_valid(version: str) -> bool:
    """Whether pip can read it; Debian's packages have versions of their own kind."""
    try:
        Version(version)
    except InvalidVersion:
        return False
    return True
