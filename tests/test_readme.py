"""What README.md says can be done, can be done: its code runs, its commands parse, its files exist.

The tiny checkpoint stands in for the published weights.
"""

import json
import math
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro

import conversion.__main__
from jaxcoder import ModelConfig, cli
from jaxcoder.fim import psm_prompt
from jaxcoder.hf_names import tensor_shapes
from jaxcoder.tokenizer import Tokenizer

pytest_plugins = ["tiny_checkpoint"]

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
PUBLISHED = "bigcode/tiny_starcoder_py"
LISTED_WHOLE = ("jaxcoder", "conversion")
"""Folders whose every file the tree names."""


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language; "" is a block of none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [source for name, source in found if name == language]


def commands() -> list[list[str]]:
    """The words of every shell command, as the shell would split them; of a pipe its last part."""
    lines = "".join(blocks("sh")).splitlines()
    return [shlex.split(line.rpartition(" | ")[2], comments=True) for line in lines if line]


def run_block(source: str, model: Path) -> dict[str, object]:
    """Run a Python block with a model of our own; returns its variables."""
    names: dict[str, object] = {}
    exec(compile(source.replace(PUBLISHED, str(model)), "README.md", "exec"), names)
    return names


# The first screen


def test_first_screen_runs_something() -> None:
    first_screen = "\n".join(README.splitlines()[:25])
    for command in ("git clone", "make demo", "jaxcoder complete"):
        assert command in first_screen


def test_nothing_is_installed_by_a_name_on_an_index() -> None:
    """The name there may be anybody's: only this folder is installed."""
    installed = [words[2:] for words in commands() if words[:2] == ["pip", "install"]]
    installed += [shlex.split(name) for name in re.findall(r"`pip install ([^`]*)`", README)]
    assert installed
    for (target,) in installed:
        assert target == "." or target.startswith(".[")


def test_number_of_parameters_is_that_of_the_published_shape() -> None:
    shapes = tensor_shapes(ModelConfig.tiny_starcoder()).values()
    count = sum(math.prod(shape) for shape in shapes)
    assert f"({count:,} parameters" in README
    assert f"({round(4 * count / 1e6)} MB, float32)" in README


# Python


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_block_runs(tiny_checkpoint: Path, number: int) -> None:
    run_block(blocks("python")[number], tiny_checkpoint)


def test_python_is_ten_lines() -> None:
    assert len([line for line in blocks("python")[0].splitlines() if line]) == 10


def test_fill_in_the_middle_snippet_is_infill(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentinels in the text, read with special=True, give what .infill gives."""
    generation, infilling = blocks("python")[1:]
    assert 'encode("def print_hello_world():")' in generation
    names = run_block(infilling, tiny_checkpoint)
    model = names["model"]
    prefix, suffix = "def print_one_two_three():\n    print('one')\n    ", "\n    print('three')"
    assert names["input_text"] == f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    asked = model.infill_prompt(prefix, suffix)
    assert names["inputs"] == asked.tokens
    assert asked.trimmed == (0, 0)
    assert names["outputs"].tokens == names["same"].tokens == model.generate(asked.tokens).tokens
    with_text = model.generate(names["input_text"], special=True)
    assert with_text.tokens == names["outputs"].tokens
    assert capsys.readouterr().out.startswith("<fim_prefix>def print_one_two_three():")


def test_fill_in_the_middle_snippet_with_the_published_tokenizer(shared_data: Path) -> None:
    """There, too, the ids are those of the pieces: no merge reaches across a sentinel."""
    tokenizer = Tokenizer.from_file(shared_data / "starcoder-tokenizer" / "tokenizer.json")
    prefix, suffix = "def print_one_two_three():\n    print('one')\n    ", "\n    print('three')"
    text = f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    pieces = psm_prompt(tokenizer.encode(prefix), tokenizer.encode(suffix), tokenizer.fim)
    assert tokenizer.encode(text, special=True) == pieces
    assert tokenizer.encode("def print_hello_world():") == [589, 1459, 81, 7656, 81, 5860, 2262]


@pytest.mark.parity
def test_snippets_print_what_they_print_in_pytorch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The model card's own lines, run by transformers on an export of the same weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from conversion.export import export

    export(tiny_checkpoint, tmp_path / "exported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    for block in blocks("python")[1:]:
        ours = run_block(block, tiny_checkpoint)
        text = ours.get("input_text", "def print_hello_world():")
        inputs = tokenizer.encode(text, return_tensors="pt")
        outputs = model.generate(inputs, max_new_tokens=128, do_sample=False)
        tokens = ours["inputs"] + ours["outputs"].tokens
        assert outputs[0].tolist() == tokens
        assert tokenizer.decode(outputs[0]) == ours["tokenizer"].decode(tokens, skip_special=False)


# Commands


def test_commands_are_found() -> None:
    """Negative control: the parsing below sees them all, comments and pipes taken off."""
    starts = {tuple(words[:2]) for words in commands()}
    assert {("make", "demo"), ("jaxcoder", "infill"), ("jaxcoder", "info")} <= starts
    assert ["--stop", "class "] in [words[-3:-1] for words in commands()]
    assert not any("#" in words for words in commands())


@pytest.fixture
def workplace(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The current folder is one with the files that the commands name."""
    (tmp_path / "checkpoint").symlink_to(tiny_checkpoint)
    for name in ("example.py", "prompt.py", "before.py", "after.py"):
        (tmp_path / name).write_text("def add(a, b):\n    return a + b\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", (tmp_path / "prompt.py").open())
    yield
    sys.stdin.close()


@pytest.mark.parametrize(
    "words", [words for words in commands() if words[0] == "jaxcoder"], ids=shlex.join
)
def test_jaxcoder_command_runs(
    workplace: None,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    words = [word.replace(PUBLISHED, "./checkpoint") for word in words]
    monkeypatch.setattr(sys, "argv", words)
    cli.main()
    out = capsysbinary.readouterr().out
    assert bool(out) == ("--in-place" not in words)
    if "--json" in words:
        assert json.loads(out)


@pytest.mark.parametrize(
    "words", [words for words in commands() if words[:2] == ["python", "-m"]], ids=shlex.join
)
def test_module_command_parses(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """The command line accepts it; what it does has tests of its own."""
    parsed = []
    real = tyro.cli

    def parse_only(*arguments, **options):
        parsed.append(real(*arguments, **options))
        raise SystemExit(0)

    assert words[2] == "conversion"
    monkeypatch.setattr(tyro, "cli", parse_only)
    monkeypatch.setattr(sys, "argv", words[2:])
    with pytest.raises(SystemExit):
        conversion.__main__.main()
    assert type(parsed[0]).__name__.lower() == words[3]


def test_make_targets_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    named = [words[1] for words in commands() if words[0] == "make"]
    named += re.findall(r"`make ([\w-]+)", README)
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# Files


def tree() -> list[str]:
    """The paths that the file tree names."""
    (text,) = [block for block in blocks("") if "generator.py" in block]
    paths, folder = [], ""
    for line in text.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else ""
        paths.append(folder + name)
        if name.endswith("/"):
            folder = name
        paths += [folder + other for other in re.findall(r"\b\w+\.py\b", line[27:])]
    return paths


def test_files_of_the_tree_exist() -> None:
    paths = tree()
    assert len(paths) > 40
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert (PROJECT / path).exists(), path
        assert (PROJECT / path).is_dir() == path.endswith("/")


@pytest.mark.parametrize("folder", LISTED_WHOLE)
def test_tree_has_every_file(folder: str) -> None:
    """A file that the tree lacks is not found by a reader: add a line with what it does."""
    files = {f"{folder}/{path.name}" for path in (PROJECT / folder).glob("*.py")}
    assert files - {f"{folder}/__init__.py"} <= set(tree())


def test_links_and_local_files_exist() -> None:
    for name in re.findall(r"\b[\w/]+\.md\b|\bLICENSE\b", README):
        assert (PROJECT / name).exists(), name


def test_measured_figures_have_their_place() -> None:
    assert re.search(r"^<!-- measured -->$.*^<!-- /measured -->$", README, re.M | re.S)
