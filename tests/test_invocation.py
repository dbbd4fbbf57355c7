"""The command as it can be typed: what the demo prints next did not run from a checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcoder.invocation import command_line

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an interpreter and a command, started from the folder above by its path."""
    folder = tmp_path / "my env" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "jaxcoder"):
        (folder / name).write_text("#!/bin/sh\necho this one\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setattr(sys, "argv", [str(PROJECT / "jaxcoder" / "__main__.py"), "demo"])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return folder


def test_an_environment_that_is_not_activated_is_named(environment: Path) -> None:
    """As `make demo` starts it: relative to the current folder, and quoted for the shell."""
    assert command_line() == "'my env/bin/jaxcoder'"
    said = subprocess.run(["sh", "-c", command_line()], capture_output=True, text=True, check=True)
    assert said.stdout == "this one\n"


def test_from_another_folder_the_path_is_whole(
    environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the command's own folder a bare name would be looked for on the PATH."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command_line() == f"'{environment}/jaxcoder'"
    monkeypatch.chdir(environment)
    assert command_line() == "./jaxcoder"


def test_a_command_on_the_path_is_its_name(
    environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An activated environment; control: another command of that name is another command."""
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin")
    assert command_line() == "jaxcoder"
    other = tmp_path / "other"
    other.mkdir()
    (other / "jaxcoder").write_text("#!/bin/sh\n")
    (other / "jaxcoder").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:{environment}")
    assert command_line() == "'my env/bin/jaxcoder'"


def test_the_script_that_was_started_comes_first(
    environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Installed for one user, it is not beside the interpreter."""
    script = tmp_path / "user" / "jaxcoder"
    script.parent.mkdir()
    script.touch()
    monkeypatch.setattr(sys, "argv", ["user/jaxcoder", "demo"])
    assert command_line() == "user/jaxcoder"


def test_without_a_script_the_interpreter_runs_the_package(environment: Path) -> None:
    os.unlink(environment / "jaxcoder")
    assert command_line() == "'my env/bin/python' -m jaxcoder"
