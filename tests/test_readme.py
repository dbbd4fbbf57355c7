"""README.md: its first screen, its Python, its tree; and the first run of the training guide.

Commands and links, as those of every document, are tried in test_docs.py, figures in
test_figures.py. The tiny checkpoint stands in for the published weights.
"""

import re
import tomllib
from pathlib import Path

import pytest
import tyro
from documents import PROJECT, blocks, commands, read, run_block

import train.cli
from jaxcoder.fim import psm_prompt
from jaxcoder.tokenizer import Tokenizer
from train.presets import PRESETS
from train.start_checks import check_start

pytest_plugins = ["tiny_checkpoint"]

README = read("README.md")
PYTHON = blocks("python", README)
LISTED_WHOLE = ("jaxcoder", "conversion")
"""Folders whose every file the tree names."""


# The first screen


def test_first_screen_runs_the_demo_then_the_real_model_then_trains() -> None:
    first_screen = "\n".join(README.splitlines()[:25])
    found = [
        first_screen.find(command)
        for command in ("git clone", "make demo", "jaxcoder complete", "python -m train finetune")
    ]
    assert -1 not in found
    assert found == sorted(found)


def test_the_address_is_that_of_the_project() -> None:
    """It stands once, in pyproject.toml; README repeats it, and says while it is a placeholder."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    address = project["project"]["urls"]["Repository"]
    assert ["git", "clone", address] in commands(README)
    assert ("OWNER is a placeholder" in README) == ("OWNER" in address)


def test_nothing_is_installed_by_a_name_on_an_index() -> None:
    """The name there may be anybody's: only this folder is installed."""
    installed = [words[2:] for words in commands(README) if words[:2] == ["pip", "install"]]
    assert len(installed) > 1
    for (target,) in installed:
        assert target == "." or target.startswith(".[")


# Python


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_block_runs(tiny_checkpoint: Path, number: int) -> None:
    run_block(PYTHON[number], "README.md", tiny_checkpoint)


def test_python_is_ten_lines() -> None:
    assert len([line for line in PYTHON[0].splitlines() if line]) == 10


def test_fill_in_the_middle_snippet_is_infill(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentinels in the text, read with special=True, give what .infill gives."""
    generation, infilling = PYTHON[1:3]
    assert 'encode("def print_hello_world():")' in generation
    names = run_block(infilling, "README.md", tiny_checkpoint)
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
    for block in PYTHON[1:3]:
        ours = run_block(block, "README.md", tiny_checkpoint)
        text = ours.get("input_text", "def print_hello_world():")
        inputs = tokenizer.encode(text, return_tensors="pt")
        outputs = model.generate(inputs, max_new_tokens=128, do_sample=False)
        tokens = ours["inputs"] + ours["outputs"].tokens
        assert outputs[0].tolist() == tokens
        assert tokenizer.decode(outputs[0]) == ours["tokenizer"].decode(tokens, skip_special=False)


# Files


def tree() -> list[str]:
    """The paths that the file tree names."""
    (text,) = [block for block in blocks("text", README) if "generator.py" in block]
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


def test_the_licence_is_named() -> None:
    assert "LICENSE" in README
    assert (PROJECT / "LICENSE").exists()


# The first run of docs/training.md


def test_first_run_of_the_guide_starts_from_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings, model and data fit each other; a newcomer needed three attempts.

    Control: without one of its settings they do not.
    """
    found = commands(read("docs/training.md"))
    (words,) = [words for words in found if "jaxcoder/demo" in words]
    monkeypatch.chdir(PROJECT)
    for left_out in ("", "--batch.seq-len", "--optimizer.warmup-steps"):
        given = list(words[4:])
        if left_out:
            del given[given.index(left_out) : given.index(left_out) + 2]
        command = tyro.cli(
            train.cli.TrainCommand,
            args=[*given, "--out", str(tmp_path / "run")],
            default=train.cli.TrainCommand(PRESETS[words[3]]()),
        )
        if left_out:
            with pytest.raises(ValueError, match=r"batch\.seq_len|optimizer\.warmup_steps"):
                check_start(command.config)
        else:
            assert check_start(command.config).folder == Path("jaxcoder/demo")
