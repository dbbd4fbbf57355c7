"""What the documents say can be done, can be done: code and commands run, links lead somewhere.

The tiny checkpoint stands in for the published weights; the demo model is itself. Training is cut
to two steps of short rows, verify to one prompt. What is not run is in `NOT_RUN`, with the reason.
"""

import functools
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
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
    hidden_code,
    languages,
    read,
    run_block,
    shell_lines,
)
from training_run import write_documents

import train.cli
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
    "pip install": "the network; looked up are the extras, and that it is this folder",
    "make ": "it installs, and some of it takes hours; `make -n` plans it",
    "python -m train plan": "libtpu, and minutes; it is parsed",
    "python -m train.demo_corpus": "a hundred packages from the network; it is parsed",
    "python -m benchmarks": "hours, and it writes over what is committed; it is parsed",
    "python -m conversion verify --synthetic": "minutes, at the 164M shape; it is parsed",
}
"""How a command begins that is not run -> why, and what is done in its place."""

STEPS = 2
SHORTER = [
    *("--loop.steps", str(STEPS), "--optimizer.warmup-steps", "1", "--optimizer.peak-lr", "1e-3"),
    *("--loop.eval-batches", "1", "--loop.eval-infills", "0", "--loop.eval-samples", "0"),
    *("--batch.size", "4", "--batch.accumulation", "2", "--batch.seq-len", "64"),
    *("--shape.vocab-size", "512", "--shape.n-embd", "32", "--shape.n-layer", "1"),
    *("--source.validation-share", "0.2"),
]
"""Appended to training commands, so that they take seconds: of an option the last one counts.

New models are small, too; runs from one model have one learning rate, and so compile one step.
"""


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
    """Code under another name, or under none, would not be run; signatures are `py`, generated.

    CONTRIBUTING's commands were not seen: one block had no name, the other was a list's.
    """
    text = read(document)
    is_generated = document.startswith("docs/api/")
    assert languages(text) <= {"sh", "python", "text"} | ({"py"} if is_generated else set())
    assert is_generated or not hidden_code(text)


@pytest.mark.parametrize(
    "text",
    [
        "```\nmake demo\n```\n",
        "```bash\nmake demo\n```\n",
        "~~~\nmake demo\n~~~\n",
        "1. Run\n\n   ```\n   make demo\n   ```\n",
        "> ```sh\n> make demo\n> ```\n",
        "    make demo\n",
    ],
)
def test_code_without_a_language_is_found(text: str) -> None:
    """Control of the test above; in a list the commands of a named block are seen."""
    assert hidden_code(text) or not languages(text) <= {"sh", "python", "text"}
    in_a_list = "1. Run\n\n   ```sh\n   make \\\n     demo\n   ```\n\n   or not.\n"
    assert commands(in_a_list) == [["make", "demo"]]
    assert not hidden_code(in_a_list)


def test_the_example_of_a_docstring_runs(tiny_checkpoint: Path) -> None:
    """Code in a docstring is indented code of the reference; one page has some."""
    examples = [
        (document, textwrap.dedent(example))
        for document in DOCUMENTS
        for example in re.findall(
            r"^ {4}(?:from|import) .*\n(?:(?: {4}.*)?\n)*", read(document), re.MULTILINE
        )
    ]
    assert [document for document, _ in examples] == ["docs/api/inspect.md"]
    for document, example in examples:
        run_block(example, document, tiny_checkpoint)


# Commands

COMMANDS = [
    pytest.param(document, words, id=f"{document}: {shlex.join(words)}")
    for document in DOCUMENTS
    for words in commands(read(document))
]


def copy_package(folder: Path) -> None:
    """The package as a folder of code to train on, and the demo model in it."""
    ignored = shutil.ignore_patterns("demo", "__pycache__")
    shutil.copytree(PROJECT / "jaxcoder", folder, ignore=ignored)
    (folder / "demo").symlink_to(PROJECT / "jaxcoder" / "demo")


@pytest.fixture(scope="module")
def materials(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """A folder with the files that the commands read, and one for the token stores.

    Every run that a command names is there, finished and not exported yet, and every export.
    """
    folder = tmp_path_factory.mktemp("materials")
    cache = tmp_path_factory.mktemp("cache")
    copy_package(folder / "jaxcoder")
    (folder / "CORPUS").mkdir()
    for name in ("my_project", "CORPUS/train"):
        write_documents(folder / name)
    texts = [path.read_text() for path in sorted((folder / "my_project").iterdir())]
    (folder / "code.jsonl").write_text("\n".join(json.dumps({"content": text}) for text in texts))
    for name in ("example.py", "prompt.py", "before.py", "after.py"):
        (folder / name).write_text("def add(a, b):\n    return a + b\n")
    for line in shell_lines(read("README.md")):
        if line.startswith("printf "):
            subprocess.run(["sh", "-c", line], cwd=folder, check=True)
    finished = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXCODER_CACHE", str(cache))
        words = ["finetune", "--model", str(tiny_checkpoint), "--data", str(folder / "my_project")]
        words += ["--out", str(finished), "--no-export", *SHORTER]
        assert train.cli.main(words) == 0
    (folder / "exports").mkdir()
    for name in sorted({word for parameters in COMMANDS for word in parameters.values[1]}):
        if re.fullmatch(r"runs/[\w-]+", name):
            shutil.copytree(finished, folder / name)
        elif re.fullmatch(r"exports/.*|runs/.*/export-\d+|\./checkpoint|SRC", name):
            (folder / name).symlink_to(tiny_checkpoint)
    yield folder, cache


@pytest.fixture
def workplace(
    materials: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The current folder is one with the files that the commands name, or make themselves."""
    folder, cache = materials
    shutil.copytree(folder, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.setenv("JAXCODER_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "prompt.py").open() as prompt:
        monkeypatch.setattr(sys, "stdin", prompt)
        yield tmp_path


@functools.cache
def extras() -> dict[str, list[str]]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["optional-dependencies"]


@functools.cache
def make_plans(*words: str) -> None:
    """`make -n` has steps for it; its variables are the Makefile's, the test files exist."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, value = word.partition("=")
        assert not is_variable or re.search(rf"^{name} \?=", makefile, re.MULTILINE), word
        for file in re.findall(r"tests/\w+\.py", value):
            assert (PROJECT / file).exists(), file
    # The environment is the one that the tests run in, so that no other Python is looked for. And
    # of the variables only the path: a make that runs the tests hands its own down.
    here = (f"PYTHON={sys.executable}", f"VENV={sys.prefix}")
    planned = subprocess.run(
        ["make", "-n", *here, *words],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.strip()


def is_installed_from_here(words: list[str]) -> None:
    """The name on an index may be anybody's: only this folder is installed, with extras it has."""
    (target,) = words[2:]
    assert target == "." or target.startswith(".[")
    for extra in re.findall(r"[\w-]+", target[1:]):
        assert extra in extras(), extra


def module_parses(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """The command line of ``python -m`` accepts it, and so do the checks of a run's settings."""
    parsed = []
    real = tyro.cli

    def parse_only(*arguments, **options):
        parsed.append(real(*arguments, **options))
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(tyro, "cli", parse_only)
        patch.setattr(sys, "argv", words[2:])
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


def make_room(path: Path) -> None:
    """Take away what a command is to write, or what stands in for it; never what that leads to."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def destination(words: list[str]) -> Path | None:
    """The folder to write that a command names: after --out, or behind what it reads."""
    if "--out" in words:
        return Path(words[words.index("--out") + 1])
    named = list(itertools.takewhile(lambda word: not word.startswith("-"), words[4:]))
    return Path(named[1]) if len(named) == 2 else None


def module_runs(
    monkeypatch: pytest.MonkeyPatch, words: list[str], capture: Callable[[], bytes]
) -> None:
    """``python -m`` ends with status 0; what it was to write, or says that it wrote, is there."""
    words = [word.replace(PUBLISHED, "./checkpoint") for word in words]
    if "--step" in words:
        words[words.index("--step") + 1] = str(STEPS)
    if words[2] == "train" and words[3] in PRESETS:
        words += SHORTER
    if words[3] == "verify":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        monkeypatch.setattr("conversion.verify.QUICK_PROMPTS", 1)
        monkeypatch.setattr("conversion.verify.NEW_TOKENS", 4)
    folder = destination(words)
    if folder:
        make_room(folder)
    monkeypatch.setattr(sys, "argv", words[2:])
    try:
        runpy.run_module(words[2], run_name="__main__")
    except SystemExit as exc:
        assert not exc.code
    said = capture().decode().strip()
    assert folder is None or (folder / "config.json").exists()
    assert words[2] != "train" or Path(said).exists()
    assert words[3] != "verify" or "all bounds hold" in said


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
    is_run = not line.startswith(tuple(NOT_RUN))
    if words[0] == "jaxcoder":
        jaxcoder_runs(monkeypatch, words, lambda: capsysbinary.readouterr().out)
    elif words[:2] == ["python", "-m"]:
        module_parses(monkeypatch, words)
        if is_run:
            module_runs(monkeypatch, words, lambda: capsysbinary.readouterr().out)
    elif words[0] == "make":
        make_plans(*words[1:])
    elif words[:2] == ["pip", "install"]:
        is_installed_from_here(words)
    elif is_run:
        pytest.fail(f"{document}: {line!r}: no test knows this command; add it, or a reason")


@pytest.mark.parametrize(
    "line",
    [
        "make demos",
        "make test PARTY=1",
        "make test PYTEST_ARGS=tests/test_no.py",
        "pip install jaxcoder",
        "python -m conversion export SRC DST DST",
        "python -m conversion export code.jsonl DST",
        "python -m train export my_project",
        "python -m train finetune --data my_project --out runs/mine --fim.rate 2",
        "ruff check",
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
def test_a_wrong_command_fails(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
    line: str,
) -> None:
    """Control of the test above: what is not parsed, and what is and ends with an error."""
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        test_command_runs_or_parses(workplace, monkeypatch, capsysbinary, "x.md", shlex.split(line))


def test_commands_are_found() -> None:
    """Negative control: all are seen, comments and pipes taken off, continued lines joined."""
    all_words = [parameters.values[1] for parameters in COMMANDS]
    starts = {tuple(words[:2]) for words in all_words}
    assert {("make", "demo"), ("jaxcoder", "infill"), ("jaxcoder", "loss")} <= starts
    assert ["--stop", "class "] in [words[-3:-1] for words in all_words]
    assert not any("#" in words or "\\" in words for words in all_words)
    assert any("benchmarks.demo_card" in words and "--out" in words for words in all_words)
    assert ["make", "test", "PARITY=1", "PYTEST_ARGS=tests/test_reference.py"] in all_words


@pytest.mark.parametrize("beginning", NOT_RUN)
def test_every_reason_is_needed(beginning: str) -> None:
    lines = [line for document in DOCUMENTS for line in shell_lines(read(document))]
    assert any(line.startswith(beginning) for line in lines)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_sentences_exist(document: str) -> None:
    """`python -m MODULE` and `make TARGET` between backticks name something that is there."""
    text = read(document)
    for told in re.findall(r"`make ([a-z][^`]*)`", text):
        make_plans(*shlex.split(told))
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
