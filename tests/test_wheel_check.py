"""What `make wheel-check` and `make notebooks-check` find wrong; installing needs an index."""

import zipfile
from pathlib import Path

import notebooks_check
import pytest
import wheel_check

FILES = {"pack/__init__.py": "", "pack/py.typed": "", "pack/demo/config.json": "{}"}
INFORMATION = {"pack-1.0.dist-info/METADATA": "Name: pack"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    cache = tmp_path / "pack" / "__pycache__"
    cache.mkdir()
    (cache / "old.pyc").touch()
    return tmp_path / "pack"


def packed(folder: Path, files: dict[str, str]) -> Path:
    wheel = folder / "pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def test_a_whole_wheel_has_no_problem(source: Path, tmp_path: Path) -> None:
    assert wheel_check.wheel_problems(packed(tmp_path, FILES | INFORMATION), source) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pack/py.typed": None}, "lacks pack/py.typed"),
        ({"pack/demo/config.json": None}, "lacks pack/demo/config.json"),
        ({"train/__init__.py": ""}, "holds train/__init__.py too"),
        ({"pack/__pycache__/old.pyc": ""}, "holds pack/__pycache__/old.pyc too"),
        ({"pack/removed.py": ""}, "holds pack/removed.py too"),
        ({"pack/__init__.py": "old = 1"}, "pack/__init__.py is not the file of the source"),
    ],
)
def test_a_wrong_wheel_is_found(
    changed: dict[str, str | None], words: str, source: Path, tmp_path: Path
) -> None:
    files = FILES | INFORMATION | changed
    kept = {name: text for name, text in files.items() if text is not None}
    (problem,) = wheel_check.wheel_problems(packed(tmp_path, kept), source)
    assert problem == f"pack-1.0-py3-none-any.whl: {words}"


def test_a_step_that_fails_ends_the_check(tmp_path: Path) -> None:
    """With what it printed; and not in the environment that the check itself runs in."""
    with pytest.raises(SystemExit, match=r"(?s)sh -c .*oh dear.*: FAILED"):
        wheel_check.run(["sh", "-c", "echo oh dear >&2; exit 3"], tmp_path)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"jax": "0.10.2"}, "changed ['jax 0.7.2 -> 0.10.2'], not added []"),
        ({"jax": None}, "changed ['jax 0.7.2 -> removed'], not added []"),
        ({"tyro": None}, "changed [], not added ['tyro']"),
    ],
)
def test_a_changed_installation_is_found(after: dict[str, str | None], words: str) -> None:
    """The twin without a change passes."""
    before, added = {"jax": "0.7.2"}, {"tyro": "1.0", "tensorboardx": "2.6"}
    notebooks_check.check(before, before | added)
    merged = before | added | after
    with pytest.raises(SystemExit) as failed:
        notebooks_check.check(before, {k: v for k, v in merged.items() if v is not None})
    assert words in str(failed.value)
