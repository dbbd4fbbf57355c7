"""The type checker finds what it should, and a caller of the library sees its types.

`make lint` checks the project itself; here are its controls.
"""

import importlib.util
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcoder import Generator
from jaxcoder.arguments import DrawingArguments

PROJECT = Path(__file__).resolve().parent.parent

CALLER = """
from jaxcoder import Generator

generator = Generator.from_pretrained()
text: str = generator.generate("def f(").text
ids: list[int] = generator.generate([1, 2], temperature=0.8, top_k=None).tokens
several: list[str] = [each.text for each in generator.generate(["a", "b"], stop="c")]
grouped = generator.generate(["a", "b"], n=3, temperature=0.8, special=True)
reasons: list[str] = [each.finish_reason for group in grouped for each in group]
middle: str = generator.infill("def f(", "pass", mode="spm").text
for piece in generator.stream("def f("):
    text += piece
shape: tuple[int, ...] = generator.logits([[1, 2], [3, 4]], [2, 1]).shape
"""

# What a caller could get wrong, and the rule that says so.
MISTAKES = {
    'generator.generate("a", temprature=0.8)': "no-matching-overload",
    'generator.generate("a", temperature="hot")': "no-matching-overload",
    'generator.generate("a", n=2).text': "missing-attribute",
    'generator.generate(["a"]).text': "missing-attribute",
    'generator.infill("a", 3)': "bad-argument-type",
    "generator.generate(None)": "no-matching-overload",
}


def checked(folder: Path, *arguments: str) -> str:
    """What the checker says of `arguments`, or of the project in `folder`."""
    if importlib.util.find_spec("pyrefly") is None:
        pytest.skip("pyrefly is not installed; `make lint` installs it")
    command = [sys.executable, "-m", "pyrefly", "check", "--output-format", "min-text"]
    interpreter = ["--python-interpreter-path", sys.executable]
    result = subprocess.run(
        [*command, *interpreter, *arguments], cwd=folder, capture_output=True, text=True
    )
    output = result.stdout + result.stderr
    assert (result.returncode != 0) == ("ERROR" in output), output
    return output


@pytest.mark.parametrize("package", ["jaxcoder", "conversion", "train", "benchmarks"])
def test_a_planted_error_is_found(package: str, tmp_path: Path) -> None:
    """By the project's own settings, in every package; without it they find nothing."""
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    (tmp_path / package).mkdir()
    file = tmp_path / package / "new.py"
    file.write_text("def count(text: str) -> int:\n    return len(text)\n", encoding="utf-8")
    assert "ERROR" not in checked(tmp_path)
    file.write_text("def count(text: str) -> int:\n    return text\n", encoding="utf-8")
    assert "bad-return" in checked(tmp_path)


@pytest.fixture
def installed(tmp_path: Path) -> list[str]:
    """Options that let the checker see the library as the wheel has it, outside of a project."""
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__", "demo")
    shutil.copytree(PROJECT / "jaxcoder", site / "jaxcoder", ignore=ignored)
    (tmp_path / "caller").mkdir()
    return ["--site-package-path", str(site), "--preset", "default", "caller.py"]


def test_a_caller_sees_the_types(tmp_path: Path, installed: list[str]) -> None:
    """Also which result each call of `generate` has: all of them were one union of three."""
    (tmp_path / "caller" / "caller.py").write_text(CALLER, encoding="utf-8")
    output = checked(tmp_path / "caller", *installed)
    assert "ERROR" not in output, output


def test_a_callers_mistakes_are_found(tmp_path: Path, installed: list[str]) -> None:
    """Negative control: a library without types would let all of it pass."""
    lines = [*CALLER.splitlines()[:5], *MISTAKES]
    (tmp_path / "caller" / "caller.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = checked(tmp_path / "caller", *installed)
    for number, (line, rule) in enumerate(MISTAKES.items(), 6):
        found = [each for each in output.splitlines() if f"caller.py:{number}:" in each]
        assert len(found) == 1, (line, output)
        assert f"[{rule}]" in found[0], line


@pytest.mark.parametrize("method", [Generator.generate, Generator.infill])
def test_arguments_for_type_checkers_are_those_there_are(method) -> None:
    """`DrawingArguments` says once more what the methods take: an argument could be left out."""
    own = {"self", "prompt", "prefix", "suffix", "mode", "n", "special"}
    hints = inspect.get_annotations(DrawingArguments)
    found = inspect.signature(method).parameters
    assert hints == {name: each.annotation for name, each in found.items() if name not in own}
