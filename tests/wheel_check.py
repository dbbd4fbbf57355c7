"""The wheel as a user gets it: built, looked into, installed alone, run from elsewhere.

``make wheel-check``, or ``python tests/wheel_check.py [REQUIREMENT...]``: further requirements are
handed to pip, such as jax==0.10.2. It needs a package index, for what the wheel depends on; the
tests in test_packaging.py need none.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

_BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE")
_PACKAGES = ("jaxcoder", "conversion", "train", "benchmarks")

_ASK = """
import importlib.util, jax, jaxcoder
print("jaxcoder in", jaxcoder.__file__)
print("jax", jax.__version__)
print("others:", *[name for name in {others!r} if importlib.util.find_spec(name)])
"""


def main(requirements: list[str]) -> None:
    """Build, check, install and run.

    Raises:
      SystemExit: a step failed; the message says which and what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="wheel-check-") as name:
        folder = Path(name).resolve()
        python = new_environment(folder / "environment")
        wheel = _built(folder, python)
        problems = wheel_problems(wheel, PROJECT / "jaxcoder")
        if problems:
            raise SystemExit("wheel-check: " + "\nwheel-check: ".join(problems))
        run([python, "-m", "pip", "install", "--quiet", wheel, *requirements], folder)
        print(f"wheel: {wheel.name}, {_megabytes(wheel.stat().st_size)}")
        installed = next((folder / "environment").rglob("site-packages/jaxcoder"))
        print(f"installed: {_megabytes(_size(installed))}")
        print(f"with what it needs: {_megabytes(_size(folder / 'environment'))}", flush=True)
        _use(folder, python, installed)
    print(f"wheel-check: passed with Python {sys.version.split()[0]}")


def wheel_problems(wheel: Path, source: Path) -> list[str]:
    """What is in the wheel and not in the package's folder, or the other way round, or differs.

    Args:
      wheel: the .whl file.
      source: the folder of the package.
    """
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    package = source.name
    expected = {
        f"{package}/{path.relative_to(source).as_posix()}": path.read_bytes()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = f"{package}-{wheel.name.split('-')[1]}.dist-info/"
    found = {name for name in contents if not name.startswith(information)}
    problems = [f"{wheel.name}: lacks {name}" for name in sorted(expected.keys() - found)]
    problems += [f"{wheel.name}: holds {name} too" for name in sorted(found - expected.keys())]
    return problems + [
        f"{wheel.name}: {name} is not the file of the source"
        for name in sorted(found & expected.keys())
        if contents[name] != expected[name]
    ]


def new_environment(folder: Path) -> Path:
    """Make an environment in `folder` with this interpreter; returns its own."""
    run([sys.executable, "-m", "venv", folder], folder.parent)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def _built(folder: Path, python: Path) -> Path:
    """The wheel of a copy of the tree: setuptools would take old files along from a build/."""
    tree = folder / "tree"
    for package in _PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / package, tree / package, ignore=ignored)
    for name in _BUILT_FROM:
        shutil.copy(PROJECT / name, tree)
    output = folder / "dist"
    run([python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", output, tree], folder)
    (wheel,) = output.glob("*.whl")
    return wheel


def _use(folder: Path, python: Path, installed: Path) -> None:
    """Import it and run the demo, where nothing else of the project is to be found."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    said = run([python, "-c", _ASK.format(others=_PACKAGES[1:])], elsewhere)
    print(said, end="")
    place, _, others = said.splitlines()
    if Path(place.removeprefix("jaxcoder in ")).parent != installed or others != "others:":
        raise SystemExit(f"wheel-check: {place}, {others}; expected {installed} and no others")
    demo = run([python.with_name("jaxcoder"), "demo"], elsewhere)
    print(demo, end="")
    if "tokens/s" not in demo:
        raise SystemExit("wheel-check: the demo did not say how fast it was")


def run(command: list[str | Path], folder: Path) -> str:
    """Standard output of a command in `folder`, without what this process has set for Python."""
    environment = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
    environment["HF_HUB_OFFLINE"] = "1"
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode:
        shown = " ".join(map(str, command))
        raise SystemExit(f"{shown}\n{result.stdout}{result.stderr}{Path(sys.argv[0]).name}: FAILED")
    return result.stdout


def _size(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


if __name__ == "__main__":
    main(sys.argv[1:])
