"""The notebooks' first cell: it adds what is missing, changes nothing, or says why it cannot.

Each test has a virtual environment of its own that sees this one's packages, wheels made here, and
no index. The project installed is a stand-in of a few lines.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from colab import build

pytest.importorskip("pip")
pytest.importorskip("packaging")

NOWHERE = "file:///nowhere/at/all"


class Place(NamedTuple):
    """An environment, and a folder of wheels that pip may take."""

    python: Path
    packages: Path
    wheels: Path

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run its Python, without an index."""
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=cwd,
            env=inherited | pip | {"GIT_CONFIG_GLOBAL": os.devnull},
            capture_output=True,
            text=True,
        )

    def versions(self, *names: str) -> dict[str, str]:
        """Which of `names` are installed, and in which version."""
        code = (
            "from importlib.metadata import distributions as d\n"
            f"print(*(f'{{x.name}}={{x.version}}' for x in d() if x.name in {names}))"
        )
        words = self.run("-c", code, cwd=self.wheels).stdout.split()
        return dict(sorted(word.split("=") for word in words))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An environment where alpha 1.0 is installed; pip could have 2.0."""
    folder, wheels = tmp_path / "environment", tmp_path / "wheels"
    wheels.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = folder / "lib" / minor / "site-packages"
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "inherited.pth").write_text("\n".join(sorted(paths)), encoding="utf-8")
    place = Place(folder / "bin" / "python", packages, wheels)
    write_wheel(wheels, "alpha", "1.0")
    installed = place.run("-m", "pip", "install", "alpha", cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    write_wheel(wheels, "alpha", "2.0")
    return place


def write_wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """A wheel of one empty module."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(path, text)


def write_checkout(folder: Path, *dependencies: str, python: str = ">=3.11") -> Path:
    """A project with the notebooks' own installer, that needs `dependencies`."""
    (folder / "colab").mkdir(parents=True)
    for name in ("__init__.py", "install.py"):
        shutil.copy(build.FOLDER / name, folder / "colab")
    (folder / "pyproject.toml").write_text(
        f"[project]\nrequires-python = '{python}'\ndependencies = {[*dependencies]}\n"
        "[project.optional-dependencies]\ntrain = []\n",
        encoding="utf-8",
    )
    return folder


def first_cell(place: Place, cwd: Path, address: str = NOWHERE) -> subprocess.CompletedProcess[str]:
    """Run the cell that a notebook begins with, then say where it took the project from."""
    told = "import colab; print('from', colab.__file__)"
    return place.run("-c", build.install_cell(address) + told, cwd=cwd)


def test_what_is_missing_is_added(place: Place, tmp_path: Path) -> None:
    """And usable at once; what it needs itself is there already, and is not upgraded."""
    write_wheel(place.wheels, "beta", "1.0", "alpha")
    checkout = write_checkout(tmp_path / "checkout", "beta", "alpha>=1")
    result = place.run("-c", build.install_cell(NOWHERE) + "import beta", cwd=checkout)
    assert result.returncode == 0, result.stderr
    assert "added: beta 1.0;" in result.stdout
    assert place.versions("alpha", "beta") == {"alpha": "1.0", "beta": "1.0"}


def test_nothing_missing_is_nothing_to_do(place: Place, tmp_path: Path) -> None:
    """pip, which might be absent, is not called: here, any call fails."""
    (place.packages / "pip").mkdir()
    (place.packages / "pip" / "__init__.py").write_text("raise SystemExit(1)", encoding="utf-8")
    checkout = write_checkout(tmp_path / "checkout", "alpha", "absent; python_version < '3'")
    result = first_cell(place, checkout)
    assert result.returncode == 0, result.stderr
    assert "added: nothing;" in result.stdout


def test_what_would_upgrade_is_refused(place: Place, tmp_path: Path) -> None:
    """pip by itself would upgrade, as the second half shows: Colab's JAX would be gone."""
    write_wheel(place.wheels, "beta", "1.0", "alpha>=2")
    write_wheel(place.wheels, "gamma", "1.0")
    checkout = write_checkout(tmp_path / "checkout", "gamma", "beta")
    result = first_cell(place, checkout)
    assert "pip cannot add gamma, beta beside what is installed; nothing was changed" in (
        result.stderr
    )
    assert "alpha" in result.stderr.partition("It says:")[2]
    assert place.versions("alpha", "beta", "gamma") == {"alpha": "1.0"}

    assert place.run("-m", "pip", "install", "beta", cwd=tmp_path).returncode == 0
    assert place.versions("alpha", "beta") == {"alpha": "2.0", "beta": "1.0"}


@pytest.mark.parametrize(
    ("dependency", "python", "expected"),
    [
        ("alpha>=2", ">=3.11", "alpha is 1.0, expected >=2. Nothing was changed"),
        ("alpha", ">=4", "expected >=4. Nothing was changed"),
    ],
)
def test_versions_that_do_not_suit_are_named(
    place: Place, tmp_path: Path, dependency: str, python: str, expected: str
) -> None:
    """Before pip is called: what is missing is not added either."""
    write_wheel(place.wheels, "beta", "1.0")
    result = first_cell(place, write_checkout(tmp_path / "c", "beta", dependency, python=python))
    assert expected in result.stderr
    assert place.versions("alpha", "beta") == {"alpha": "1.0"}


def test_a_change_is_named(place: Place, tmp_path: Path) -> None:
    """Whatever pip does; here it is one that upgrades behind the cell's back."""
    (place.packages / "pip").mkdir()
    (place.packages / "pip" / "__init__.py").touch()
    (place.packages / "pip" / "__main__.py").write_text(
        f"import pathlib\nfolder = pathlib.Path({str(place.packages)!r})\n"
        "(folder / 'alpha-1.0.dist-info' / 'METADATA').write_text('Name: alpha\\nVersion: 3.0\\n')",
        encoding="utf-8",
    )
    result = first_cell(place, write_checkout(tmp_path / "checkout", "beta"))
    assert "pip changed what was installed: alpha 1.0 -> 3.0" in result.stderr


def test_a_failure_is_told_though_all_names_are_there(place: Place, tmp_path: Path) -> None:
    """pip's exit status counts: it may have failed over something that a package needs."""
    (place.packages / "pip").mkdir()
    (place.packages / "pip" / "__init__.py").touch()
    (place.packages / "pip" / "__main__.py").write_text(
        f"import pathlib\nfolder = pathlib.Path({str(place.packages)!r}) / 'beta-1.0.dist-info'\n"
        "folder.mkdir()\n(folder / 'METADATA').write_text('Name: beta\\nVersion: 1.0\\n')\n"
        "raise SystemExit('no room for gamma')",
        encoding="utf-8",
    )
    result = first_cell(place, write_checkout(tmp_path / "checkout", "beta"))
    assert "pip cannot add beta beside what is installed; nothing was changed; it did add beta" in (
        result.stderr
    )
    assert "no room for gamma" in result.stderr


def test_versions_that_pip_cannot_read_are_no_obstacle(place: Place, tmp_path: Path) -> None:
    """Debian's; and the remains of a removal, which have no name."""
    for folder, text in (("odd-1", "Name: odd\nVersion: 1-ubuntu~2\n"), ("~lpha-1", "")):
        (place.packages / f"{folder}.dist-info").mkdir()
        path = place.packages / f"{folder}.dist-info" / "METADATA"
        path.write_text(text, encoding="utf-8")
    write_wheel(place.wheels, "beta", "1.0")
    result = first_cell(place, write_checkout(tmp_path / "checkout", "beta"))
    assert "added: beta 1.0;" in result.stdout, result.stderr


@pytest.mark.parametrize("folder", [".", "colab"])
def test_checkout_around_the_notebook_is_taken(place: Place, tmp_path: Path, folder: str) -> None:
    """From the root and from colab/; there is nothing at the address to clone."""
    checkout = write_checkout(tmp_path / "checkout")
    result = first_cell(place, checkout / folder)
    assert result.returncode == 0, result.stderr
    assert f"from {checkout / 'colab'}" in result.stdout


def test_without_a_checkout_the_address_is_cloned(place: Place, tmp_path: Path) -> None:
    """Once: a second run takes what the first has cloned."""
    origin, empty = write_checkout(tmp_path / "origin"), tmp_path / "empty"
    empty.mkdir()
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=origin, check=True)
    for address in (origin.as_uri(), NOWHERE):
        result = first_cell(place, empty, address)
        assert result.returncode == 0, result.stderr
        assert f"from {empty / 'jaxcoder' / 'colab'}" in result.stdout


def test_an_address_that_is_not_there_is_an_error(place: Place, tmp_path: Path) -> None:
    result = first_cell(place, tmp_path)
    assert result.returncode != 0
    assert NOWHERE in result.stderr
