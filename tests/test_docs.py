"""What the documents say can be done, can be done: code runs, commands parse, links lead somewhere.

The tiny checkpoint stands in for the published weights; the demo model is itself.
"""

import functools
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tyro
from documents import (
    DOCUMENTS,
    PROJECT,
    PUBLISHED,
    blocks,
    commands,
    read,
    run_block,
    shell_lines,
)

from jaxcoder import cli
from train.config_checks import check_config
from train.presets import PRESETS

pytest_plugins = ["tiny_checkpoint"]

# README's own blocks and commands are told apart in test_readme.py.
PYTHON_BLOCKS = [
    (document, number)
    for document in DOCUMENTS
    if document != "README.md"
    for number in range(len(blocks("python", read(document))))
]

NOT_RUN = {
    "git clone": "the network",
    "cd jaxcoder": "a change of folder is nothing to test",
    "printf ": "run by the fixture that makes the folder to work in",
}
"""How a command begins that is neither run nor parsed -> why."""


# Python


@pytest.mark.parametrize(("document", "number"), PYTHON_BLOCKS)
def test_python_block_runs_and_prints_what_is_shown(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], document: str, number: int
) -> None:
    text = read(document)
    source = blocks("python", text)[number]
    if "nnx" in source:
        pytest.importorskip("flax.nnx", exc_type=ImportError)
    run_block(source, document, tiny_checkpoint)
    shown = text.partition(source)[2].removeprefix("```\n\nprints\n\n```text\n")
    if shown != text.partition(source)[2]:
        assert capsys.readouterr().out == shown.partition("```")[0]


def test_what_a_block_prints_is_shown_somewhere() -> None:
    """Control of the comparison above: it is made at least once."""
    assert any("```\n\nprints\n\n```text\n" in read(document) for document in DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_has_a_language_that_is_tested(document: str) -> None:
    """A block of Python under another name would not be run; signatures are `py`, generated."""
    found = set(re.findall(r"^```(\w+)", read(document), re.MULTILINE))
    allowed = {"sh", "python", "text"} | ({"py"} if document.startswith("docs/api/") else set())
    assert found <= allowed


# Commands

COMMANDS = [
    pytest.param(document, words, id=f"{document}: {shlex.join(words)}")
    for document in DOCUMENTS
    for words in commands(read(document))
]


@pytest.fixture
def workplace(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The current folder is one with the files that the commands name, or make themselves."""
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "mine").mkdir()
    for name in ("checkpoint", "runs/first/export-30", "runs/mine/export-1000"):
        (tmp_path / name).symlink_to(tiny_checkpoint)
    for name in ("example.py", "prompt.py", "before.py", "after.py"):
        (tmp_path / name).write_text("def add(a, b):\n    return a + b\n")
    for line in shell_lines(read("README.md")):
        if line.startswith("printf "):
            subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "prompt.py").open() as prompt:
        monkeypatch.setattr(sys, "stdin", prompt)
        yield tmp_path


@functools.cache
def extras() -> dict[str, list[str]]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["optional-dependencies"]


def make_target_exists(words: list[str]) -> None:
    """The first word after `make` that is no variable is a target of the Makefile."""
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in words[1:] if "=" not in word]
    assert len(targets) == 1
    assert re.search(rf"^{targets[0]}:", makefile, re.MULTILINE), targets[0]


def is_installed_from_here(words: list[str]) -> None:
    """The name on an index may be anybody's: only this folder is installed, with extras it has."""
    (target,) = words[2:]
    assert target == "." or target.startswith(".[")
    for extra in re.findall(r"[\w-]+", target[1:]):
        assert extra in extras(), extra


def module_parses(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """The command line of ``python -m`` accepts it; what it does has tests of its own."""
    parsed = []
    real = tyro.cli

    def parse_only(*arguments, **options):
        parsed.append(real(*arguments, **options))
        raise SystemExit(0)

    monkeypatch.setattr(tyro, "cli", parse_only)
    monkeypatch.setattr(sys, "argv", words[2:])
    with pytest.raises(SystemExit):
        runpy.run_module(words[2], run_name="__main__")
    (found,) = parsed
    if words[2] == "train" and words[3] in PRESETS:
        command, unknown = found
        assert not unknown
        check_config(command.config)
    elif words[2] in ("train", "conversion"):
        kind = type(found).__name__.lower().removesuffix("command").removesuffix("config")
        assert kind == words[3]


def jaxcoder_runs(
    monkeypatch: pytest.MonkeyPatch, words: list[str], capture: Callable[[], bytes]
) -> None:
    """The command runs, says something where it should, and JSON where it was asked for."""
    words = [word.replace(PUBLISHED, "./checkpoint") for word in words]
    monkeypatch.setattr(sys, "argv", words)
    cli.main()
    out = capture()
    written = {"--in-place": "hole.py", "--html": "loss.html"}
    silent = [name for name in written if name in words]
    assert bool(out) != bool(silent)
    if "--html" in words:
        assert Path(written["--html"]).read_text().startswith("<!doctype html>")
    if "--json" in words:
        assert json.loads(out)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize(("document", "words"), COMMANDS)
def test_command_runs_or_parses(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
    document: str,
    words: list[str],
) -> None:
    line = shlex.join(words)
    if line.startswith(tuple(NOT_RUN)):
        return
    if words[0] == "jaxcoder":
        jaxcoder_runs(monkeypatch, words, lambda: capsysbinary.readouterr().out)
    elif words[:2] == ["python", "-m"]:
        module_parses(monkeypatch, words)
    elif words[0] == "make":
        make_target_exists(words)
    elif words[:2] == ["pip", "install"]:
        is_installed_from_here(words)
    elif words[:2] == ["python", next(iter(words[1:]), "")] and words[1].endswith(".py"):
        assert (PROJECT / words[1]).exists()
    else:
        pytest.fail(f"{document}: {line!r}: no test knows this command; add it, or a reason")


def test_commands_are_found() -> None:
    """Negative control: all are seen, comments and pipes taken off, continued lines joined."""
    all_words = [parameters.values[1] for parameters in COMMANDS]
    starts = {tuple(words[:2]) for words in all_words}
    assert {("make", "demo"), ("jaxcoder", "infill"), ("jaxcoder", "loss")} <= starts
    assert ["--stop", "class "] in [words[-3:-1] for words in all_words]
    assert not any("#" in words or "\\" in words for words in all_words)
    assert any("benchmarks.demo_card" in words and "--out" in words for words in all_words)


@pytest.mark.parametrize("beginning", NOT_RUN)
def test_every_reason_is_needed(beginning: str) -> None:
    lines = [line for document in DOCUMENTS for line in shell_lines(read(document))]
    assert any(line.startswith(beginning) for line in lines)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_sentences_exist(document: str) -> None:
    """`python -m MODULE` and `make TARGET` between backticks name something that is there."""
    text = read(document)
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z][\w-]*)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in re.findall(r"`python -m ((?:train|conversion|benchmarks|colab)[\w.]*)", text):
        path = PROJECT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for target in re.findall(r"`pip install ([^`]*)`", text):
        is_installed_from_here(["pip", "install", *shlex.split(target)])


# Links and names


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_local_files_exist(document: str) -> None:
    """Links are relative to the document, paths in backticks to the project."""
    path, text = PROJECT / document, read(document)
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert link.startswith("https://") or (path.parent / link).exists(), link
    for name in re.findall(r"`([\w.-]+/[\w./-]+\.(?:md|json|py|ipynb))`", text):
        assert (PROJECT / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_figure_is_still_to_be_filled_in(document: str) -> None:
    assert not re.findall(r"@[A-Z0-9]+@", read(document))


def test_an_example_of_infilling_makes_its_own_file(workplace: Path) -> None:
    """It took a file and a checkpoint that a reader does not have; the hole is where --at says."""
    found = [words for words in commands(read("README.md")) if words[1:3] == ["infill", "hole.py"]]
    (words,) = found
    assert "--model" not in words
    prefix, suffix = cli.split_at(Path("hole.py").read_text(), words[words.index("--at") + 1])
    assert prefix == "def add(a, b):\n    return " and suffix.startswith("\n\nprint(add(")


def test_every_document_is_in_the_index() -> None:
    """A page that the index lacks is not found."""
    index = read("docs/README.md")
    for document in DOCUMENTS:
        folder, _, name = document.rpartition("/")
        if folder == "docs" and name != "README.md":
            assert f"]({name})" in index, name
    for name in ("api/README.md", "decisions/README.md", "../CONTRIBUTING.md"):
        assert f"]({name})" in index


def test_the_forward_pass_is_where_the_architecture_says() -> None:
    """Each hop's file has the names that a reader is to look for."""
    rows = re.findall(r"^\| \d \| `([\w/.]+)` \| (.*) \|$", read("docs/architecture.md"), re.M)
    assert len(rows) == 3
    for file, told in rows:
        names = re.findall(r"`(\w+)`", told)
        source = (PROJECT / file).read_text(encoding="utf-8")
        assert names
        for name in names:
            assert re.search(rf"(class|def) {name}\b", source), (file, name)
