"""What the wheel holds, and what `make` says on a machine that lacks something."""

import os
import pkgutil
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("jaxcoder", "conversion", "train", "benchmarks", "tests")
SUBPACKAGE = "jaxcoder/planted_subpackage"


def setuptools_major() -> int:
    try:
        return int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree and a planted sub-package, built without a network."""
    if setuptools_major() < 77:
        pytest.skip("setuptools>=77 is not installed; `make test` installs it")
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        if (PROJECT / package).is_dir():
            shutil.copytree(
                PROJECT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__")
            )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (PROJECT / name).is_file():
            shutil.copy(PROJECT / name, tree)
    (tree / SUBPACKAGE).mkdir()
    (tree / SUBPACKAGE / "__init__.py").touch()
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    result = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def wheel_file(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_wheel_holds_the_library_alone(wheel: zipfile.ZipFile) -> None:
    """Generic names like `train` in site-packages would collide with other projects'."""
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"jaxcoder", f"jaxcoder-{project_version(wheel)}.dist-info"}


def test_wheel_holds_all_of_the_library(wheel: zipfile.ZipFile) -> None:
    """A sub-package is there too: `packages = ["jaxcoder"]` would leave it out silently."""
    source = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "jaxcoder").rglob("*.py")}
    expected = source | {"jaxcoder/py.typed", f"{SUBPACKAGE}/__init__.py"}
    packed = {name for name in wheel.namelist() if name.startswith("jaxcoder/")}
    assert expected <= packed
    demo = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "jaxcoder/demo").iterdir()}
    assert packed - expected == demo
    sizes = [info.file_size for info in wheel.infolist() if info.filename in demo]
    assert sum(sizes) <= 12_000_000


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    """Licence text and console script are there; PyTorch comes with the parity extra only."""
    assert "Apache License" in wheel_file(wheel, "licenses/LICENSE")
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    ((command, target),) = settings["project"]["scripts"].items()
    assert command == "jaxcoder"
    assert f"jaxcoder = {target}" in wheel_file(wheel, "entry_points.txt")
    assert callable(pkgutil.resolve_name(target))
    lines = wheel_file(wheel, "METADATA").splitlines()
    assert "Requires-Python: >=3.11" in lines
    requirements = [line for line in lines if line.startswith("Requires-Dist: ")]
    assert any(line.startswith("Requires-Dist: jax") for line in requirements)
    for line in requirements:
        if line.startswith(("Requires-Dist: torch", "Requires-Dist: transformers")):
            assert line.endswith('extra == "parity"')


def project_version(wheel: zipfile.ZipFile) -> str:
    metadata = wheel_file(wheel, "METADATA").splitlines()
    (line,) = [line for line in metadata if line.startswith("Version: ")]
    return line.removeprefix("Version: ")


FAKE_PYTHONS = {
    # An interpreter of another version, as far as anybody can tell who asks for it.
    "old": "#!/bin/sh\necho 3.9\n",
    "two": "#!/bin/sh\necho 2.7\n",
    # Debian without python3-venv: everything but ensurepip.
    "no venv": (
        f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec "{sys.executable}" "$@"\n'
    ),
    "broken": "#!/bin/sh\nexit 127\n",
    "good": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n',
}


def write_executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def run_make(folder: Path, python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the project's Makefile in `folder`, where ``python3`` is one of `FAKE_PYTHONS`."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    # With their times: a newer pyproject.toml would be a reason to install again.
    shutil.copy2(PROJECT / "Makefile", folder)
    shutil.copy2(PROJECT / "pyproject.toml", folder)
    write_executable(folder / "bin" / "python3", FAKE_PYTHONS[python])
    # Not the whole environment: a make that runs the tests hands its variables down.
    env = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([make, *arguments], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("python", "arguments", "words"),
    [
        ("old", ["test"], ["python3 is Python 3.9", "3.11 or newer", "apt install"]),
        ("old", ["demo"], ["python3 is Python 3.9", "3.11 or newer", "apt install"]),
        ("two", ["lint"], ["python3 is Python 2.7", "3.11 or newer", "apt install"]),
        ("no venv", ["test"], ["no venv or ensurepip", "apt install python3-venv"]),
        ("broken", ["test"], ["python3 does not run", "install Python 3.11"]),
        ("good", ["test", "PYTHON=pythonless"], ["pythonless does not run", "PYTHON="]),
        ("good", ["demo", "ACCEL=bogus"], ["ACCEL is 'bogus'", "cpu, cuda12, cuda13 or tpu"]),
        ("good", ["demo", "ACCEL=cpu tpu"], ["ACCEL is 'cpu tpu'", "cpu, cuda12, cuda13 or tpu"]),
        ("good", ["test", "PARITY=yes"], ["PARITY is 'yes'", "expected 1"]),
    ],
)
def test_make_answers_a_lack_in_one_line(
    python: str, arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    """It names what is missing and how to get it, and leaves nothing behind."""
    result = run_make(tmp_path, python, *arguments)
    output = (result.stdout + result.stderr).strip()
    assert result.returncode == 2
    assert len(output.splitlines()) == 1, output
    for word in words:
        assert word in output
    assert not (tmp_path / ".venv").exists()


def test_make_accepts_a_good_python(tmp_path: Path) -> None:
    """Negative control: the same guards let a suitable interpreter through."""
    result = run_make(tmp_path, "good", "--dry-run", "test", "ACCEL=cuda12", "PARITY=1")
    assert result.returncode == 0, result.stderr
    assert "-m venv" in result.stdout
    assert ".[cuda12]" in result.stdout


# An environment's Python that installs nothing and writes down what it was asked.
RECORDING_PYTHON = """#!/bin/sh
case "$1" in
  (-c) echo "3.12.1 in /elsewhere";;
  (*) echo "$@" >> calls;;
esac
"""


def installations(folder: Path, *arguments: str) -> list[str]:
    """What `make` asked pip to install, in an environment of `RECORDING_PYTHON`."""
    write_executable(folder / ".venv" / "bin" / "python", RECORDING_PYTHON)
    (folder / "calls").write_text("", encoding="utf-8")
    result = run_make(folder, "good", *arguments)
    assert result.returncode == 0, result.stderr
    calls = (folder / "calls").read_text(encoding="utf-8").splitlines()
    return [call for call in calls if "pip install" in call]


@pytest.mark.parametrize("target", ["test", "test-nightly", "bench", "demo"])
def test_parity_is_installed_where_it_is_asked_for(target: str, tmp_path: Path) -> None:
    """Whatever was installed before; without PARITY=1 there is no torch."""
    assert not any("torch" in call for call in installations(tmp_path, target))
    calls = installations(tmp_path, target, "PARITY=1")
    assert any("torch" in call for call in calls)
    assert any(".[parity]" in call for call in calls)
    assert installations(tmp_path, target, "PARITY=1") == []


def test_another_torch_is_another_installation(tmp_path: Path) -> None:
    """Of a build of the same version too; nothing else is installed again."""
    installations(tmp_path, "test", "PARITY=1")
    calls = installations(tmp_path, "test", "PARITY=1", "TORCH=torch==2.12.0 --index-url I")
    assert [call.partition("version-check ")[2] for call in calls] == [
        "--force-reinstall --no-deps torch==2.12.0 --index-url I",
        "torch==2.12.0 --index-url I",
        "--editable .[parity]",
    ]


def test_an_environment_of_another_python_is_refused(tmp_path: Path) -> None:
    """A PYTHON that is given and not used would be a test of the wrong version."""
    installations(tmp_path, "test")
    result = run_make(tmp_path, "good", "test", "PYTHON=python3")
    assert result.returncode == 2
    (line,) = (result.stdout + result.stderr).strip().splitlines()
    for word in ("PYTHON=python3 is", "Python 3.12.1 in /elsewhere", "remove .venv", "VENV="):
        assert word in line


def test_an_environment_of_the_same_python_is_used(tmp_path: Path) -> None:
    """Negative control, by another name for it; and one that does not run is named as ever."""
    write_executable(tmp_path / ".venv" / "bin" / "python", FAKE_PYTHONS["good"])
    result = run_make(tmp_path, "good", "--dry-run", "test", f"PYTHON={sys.executable}")
    assert result.returncode == 0, result.stderr
    result = run_make(tmp_path, "good", "--dry-run", "test", "PYTHON=pythonless")
    assert "pythonless does not run" in result.stderr


def test_help_is_the_default_and_needs_no_python(tmp_path: Path) -> None:
    result = run_make(tmp_path, "broken")
    assert result.returncode == 0, result.stderr
    targets = (
        *("demo", "train", "test", "test-nightly", "test-tpu-plan"),
        *("lint", "format", "docs", "wheel-check", "notebooks-check", "bench", "install", "clean"),
    )
    for target in targets:
        assert f"make {target} " in result.stdout
